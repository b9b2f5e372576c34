"""The launcher: it starts the preparation child, then one worker per entry of `site_ids`, and watches them.

It never imports torch. Children are forked from a fork server that has imported torch and transformers once.
"""

import contextlib
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed, PeerLost
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.runtime import fork_server, signals
from scaling_fl.runtime.child_process import Child, OnEvent
from scaling_fl.runtime.nodes import agreement
from scaling_fl.runtime.nodes.control_link import SINGLE_NODE, ControlLink
from scaling_fl.runtime.nodes.peer import Peer
from scaling_fl.runtime.stall_watch import StallWatch

_END_GRACE = 30.0  # seconds from SIGKILL to the end of a child
_CAUSE_GRACE = 2.0  # seconds to wait for the cause of a failure after its consequences
_REMOTE_CAUSE_GRACE = 7.0  # the same if another node must end its processes before it reports


def prepare(config: Config, folder: str, on_event: OnEvent, link: ControlLink = SINGLE_NODE) -> Plan:
    """Run the preparation child on every node; return the joint plan. Raises `UserError` on bad input, or `JobFailed`."""
    plans: list[Plan] = []

    def keep_plan(event: Event) -> None:
        if event["event"] == "prepared":
            plans.append(event["plan"])
        else:
            on_event(event)

    job = (config, folder, link.node.count > 1)
    target, name = "scaling_fl.runtime.preparation:prepare", "the preparation"
    run_children(target, [job], [name], folder, keep_plan, config.stall_timeout, link, True)
    return agreement.join_plans(plans[0], link)


def train(plan: Plan, on_event: OnEvent, link: ControlLink = SINGLE_NODE) -> None:
    """Run this node's workers until all are done. Raises `JobFailed` with the first failure."""
    memory = SharedMemory()
    try:
        jobs = [(plan, rank, memory) for rank in plan.ranks_here]
        names = [plan.worker_name(rank) for rank in plan.ranks_here]
        with signals.graceful_stop():
            run_children(
                "scaling_fl.runtime.worker:work",
                jobs,
                names,
                plan.folder,
                on_event,
                plan.config.stall_timeout,
                link,
                stop_note=_stop_note(plan),
                hang_note=_hang_note(plan),
            )
    finally:
        memory.close()


def _stop_note(plan: Plan) -> str:
    """What the job does at the first stop signal, for the user."""
    if plan.node > 0:  # only node 0 knows `checkpoints_dir`
        return "stopping: asking node 0 to stop the job"
    if plan.config.checkpoints_dir is None:
        return "stopping: nothing is saved, because of checkpoints_dir=None"
    return "stopping: saving the last complete round first, if there is one"


def _hang_note(plan: Plan) -> str:
    """What to try if processes hang, beyond their stack traces."""
    gpus = {(node, device) for node, device in zip(plan.nodes or [0] * len(plan.devices), plan.devices, strict=True)}
    if not plan.devices[0].startswith("cuda") or len(gpus) == 1:
        return ""
    return (
        "If it hangs in a collective between GPUs: NCCL_DEBUG=WARN shows what NCCL waits for, and NCCL_P2P_DISABLE=1 keeps "
        "it from direct copies between GPUs, which some machines don't support"
    )


def run_children(
    target: str,
    jobs: Sequence[tuple[Any, ...]],
    names: list[str],
    folder: str,
    on_event: OnEvent,
    stall_timeout: float = 600.0,
    link: ControlLink = SINGLE_NODE,
    all_may_block: bool = False,
    stop_note: str = "stopping",
    hang_note: str = "",
) -> None:
    """Run `module:function(send, *job)` in one child per job; return when all have succeeded.

    Messages use `names`. A child that notices the launcher's death removes `folder`. A child without progress for
    `stall_timeout` seconds counts as failed. So do children that all wait for each other, unless `all_may_block` says
    that they may wait for something outside the job. Failures on the nodes of `link` count like failures here.
    Raises the first failure after stopping all children. Raises `KeyboardInterrupt` if the job is stopped, after
    printing `stop_note` and giving the first child time to save. `hang_note` ends the message about hung children.
    """
    if os.environ.get("SCALING_FL_DEBUG"):  # a process stopped by a debugger isn't hung
        stall_timeout = float("inf")
    context = fork_server.running()
    children: list[Child] = []
    try:
        with fork_server.hidden_main():
            for job, name in zip(jobs, names, strict=True):
                try:
                    children.append(Child(context, target, job, name, folder, stall_timeout))
                except (EOFError, ConnectionError) as error:
                    raise JobFailed(
                        "the fork server is gone: it was killed, or the system ran out of memory"
                    ) from error
        link.begin_phase()
        failure = _watch(children, link, on_event, stall_timeout, all_may_block, stop_note, hang_note)
    finally:
        with signals.defer_interrupts():
            for child in children:
                child.kill()
            deadline = time.monotonic() + _END_GRACE
            for child in children:
                if not child.end(deadline):
                    on_event({"event": "said", "text": _still_there(child)})
    if failure is not None:
        raise failure


def _still_there(child: Child) -> str:
    return (
        f"{child.name} (process {child.process.pid}) still runs {_END_GRACE:.0f} s after it was killed: it hangs in the "
        "system, perhaps in a driver, and its memory isn't free until it ends or the machine restarts"
    )


def _watch(
    children: list[Child],
    link: ControlLink,
    on_event: OnEvent,
    stall_timeout: float,
    all_may_block: bool,
    stop_note: str,
    hang_note: str,
) -> Exception | None:
    """Pass on events until all children, here and on other nodes, have ended or one has failed; return the root cause.

    When a worker dies, its peers' connections break, and may be reported before its death is noticed. After a broken
    connection (`PeerLost`), the launcher therefore waits a moment for any other failure, which takes precedence.
    """
    peer_lost: Exception | None = None
    cause_deadline: float | None = None
    stop_deadline: float | None = None
    stalls = StallWatch(children, stall_timeout)

    def handle(event: Event) -> None:
        if event["event"] == "stopped":
            raise KeyboardInterrupt
        stalls.notice(event, time.monotonic())
        on_event(event)

    phase_reported = False  # whether the other nodes know that this node's part is done
    members: list[Child | Peer] = [*children, *link.peers]
    while running := [member for member in members if not member.ended]:
        signals.check()
        if signals.stop_requested() and stop_deadline is None:
            stop_deadline = time.monotonic() + signals.grace_period() + link.grace
            on_event({"event": "said", "text": stop_note})
            if not link.request_stop():
                with contextlib.suppress(OSError):  # it is already ending
                    children[0].connection.send("stop")
        if stop_deadline is not None and time.monotonic() > stop_deadline:
            raise KeyboardInterrupt
        timeout = min(1.0, stall_timeout / 5) if cause_deadline is None else max(0.0, cause_deadline - time.monotonic())
        waiting_since = time.monotonic()
        ready = wait([signals.wakeup, *(source for member in running for source in member.sources())], timeout)
        if not ready and cause_deadline is not None:
            break
        if time.monotonic() - waiting_since > timeout + stall_timeout / 5:  # this process itself was suspended
            for member in running:
                member.progress_at = member.heartbeat_at = time.monotonic()
        for member in running:
            member.receive(handle)
            if isinstance(member.failure, PeerLost):
                peer_lost = peer_lost or member.failure
                grace = _REMOTE_CAUSE_GRACE if link.peers else _CAUSE_GRACE
                cause_deadline = cause_deadline or time.monotonic() + grace
            elif member.failure is not None:
                return member.failure
        for stalled in stalls.check(time.monotonic()):
            on_event(stalled)
        if not phase_reported and all(child.ended and child.failure is None for child in children):
            link.finish_phase()
            phase_reported = True
        hung = [member for member in running if not member.ended and member.is_hung(stall_timeout)]
        link.blocked = all(child.is_blocked(stall_timeout) for child in children)
        deadlock = len(running) > 1 and all(member.is_blocked(stall_timeout) for member in running)
        if hung or (deadlock and not all_may_block):
            longest = min(hung or running, key=lambda member: member.progress_at)
            failure = longest.hang_failure(stall_timeout, on_event)
            return type(failure)(f"{failure}\n{hang_note}") if hang_note else failure
    return peer_lost
