"""Processes: the preparation child, then one worker per site. The launcher watches them, and stays free of torch.

Children come from a fork server that has imported torch and transformers once.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import tempfile
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed, PeerLost, UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.runtime import signals
from scaling_fl.runtime.child_process import Child, OnEvent
from scaling_fl.runtime.nodes import agreement
from scaling_fl.runtime.nodes.control_link import ALONE, ControlLink
from scaling_fl.runtime.nodes.peer import Peer

_CAUSE_GRACE = 2.0  # seconds in which the cause of a failure may still arrive behind its consequences
_REMOTE_CAUSE_GRACE = 7.0  # … when another node has to end its processes before it tells
# What the children's libraries read when they start; each was chosen by measurement (benchmarks/README.md).
SETTINGS = {
    # Threads that spin for long while they wait take the core from a neighbour's thread that has work; threads that
    # never spin cost a lone site's step a twentieth. So they spin for a moment.
    "GOMP_SPINCOUNT": "10000",
    # Tensors of 2 MiB and more on huge pages: a step on few tokens, which waits for weights, takes a fifth less time.
    "THP_MEM_ALLOC_ENABLE": "1",
    # What one step frees the next one takes, instead of new pages from the system.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    # Addresses without a name are no news.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}


def start_fork_server() -> None:
    """Start the process that imports what all children need. It needs no waiting for; without this, `run_children` starts it."""
    with contextlib.suppress(UserError):  # `run_children` says it
        _fork_server()


def prepare(config: Config, folder: str, on_event: OnEvent, link: ControlLink = ALONE) -> Plan:
    """Run the preparation child, on every node. Raises `UserError` on bad input, `JobFailed` on any other failure."""
    plans: list[Plan] = []

    def keep_plan(event: Event) -> None:
        if event["event"] == "prepared":
            plans.append(event["plan"])
        else:
            on_event(event)

    job = (config, folder, link.node.count > 1)
    run_children(
        "scaling_fl.runtime.preparation:prepare",
        [job],
        ["the preparation"],
        folder,
        keep_plan,
        config.stall_timeout,
        link,
        True,
    )
    return agreement.join_plans(plans[0], link)


def train(plan: Plan, on_event: OnEvent, link: ControlLink = ALONE) -> None:
    """Run this node's workers until all are done. Raises `JobFailed` with the first failure."""
    memory = SharedMemory()
    try:
        jobs = [(plan, rank, memory) for rank in plan.ranks_here]
        names = [plan.worker_name(rank) for rank in plan.ranks_here]
        with signals.graceful_stop():
            run_children(
                "scaling_fl.runtime.worker:work", jobs, names, plan.folder, on_event, plan.config.stall_timeout, link
            )
    finally:
        memory.close()


def run_children(
    target: str,
    jobs: Sequence[tuple[Any, ...]],
    names: list[str],
    folder: str,
    on_event: OnEvent,
    stall_timeout: float = 600.0,
    link: ControlLink = ALONE,
    all_may_block: bool = False,
) -> None:
    """Run `module:function(send, *job)` in one child per job; return when all have ended well.

    `names` stand in messages; `folder` is removed by a child that finds the launcher dead. A child without progress
    for `stall_timeout` seconds counts as failed. Raises the failure of the child that failed first, after all others
    were stopped, and `KeyboardInterrupt` when the job was asked to end, after the first child has published. With other
    nodes at `link`, what happens there counts as if it happened here. Unless `all_may_block`, for something outside, it is
    a hang when all children wait and nobody gets on.
    """
    if os.environ.get("SCALING_FL_DEBUG"):  # whom a debugger holds doesn't hang
        stall_timeout = float("inf")
    context = _fork_server()
    children: list[Child] = []
    try:
        with _hidden_main():
            for job, name in zip(jobs, names, strict=True):
                try:
                    children.append(Child(context, target, job, name, folder, stall_timeout))
                except (EOFError, ConnectionError) as error:
                    raise JobFailed("the process that starts all others is gone: killed, or out of memory") from error
        link.begin_phase()
        failure = _watch(children, link, on_event, stall_timeout, all_may_block)
    finally:
        with signals.defer_interrupts():
            for child in children:
                child.end()
    if failure is not None:
        raise failure


def _fork_server() -> Any:
    """The fork server, started at the first call; it imports torch and transformers once for all children."""
    for name, value in SETTINGS.items():
        if name not in os.environ and not (name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ):
            os.environ[name] = value
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scaling_fl.runtime.preparation", "scaling_fl.runtime.worker"])
    before = os.environ.get("PYTHONPATH")
    multiprocessing.resource_tracker.ensure_running()  # first: it meddles with the signals that are blocked
    # What ends a job is the launcher's business alone. The server inherits that these are blocked, and goes with the
    # launcher; one that comes meanwhile is delivered after it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPS)
    try:
        # The server doesn't get this process's sys.path, and would pass over modules that it can't find.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, before]))
        multiprocessing.forkserver.ensure_running()
    except OSError as error:
        raise UserError(
            f"TMPDIR={tempfile.gettempdir()}: no socket can be made there ({error}); name another folder for temporary "
            "files, with a short path"
        ) from error
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)  # last: a signal that waited is raised here
    return context


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Children import the main module again, with Sacred and all; these need nothing of it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _watch(
    children: list[Child], link: ControlLink, on_event: OnEvent, stall_timeout: float, all_may_block: bool
) -> Exception | None:
    """Pass events on until all children, here and on other nodes, have ended, or one has failed.

    Returns the first failure's cause.

    When a worker dies, the others' connections to it break, and may be reported before its death is seen: after
    a broken connection the others are heard for a moment, and it gives way to any other cause.
    """
    peer_lost: Exception | None = None
    cause_deadline: float | None = None
    stop_deadline: float | None = None

    def handle(event: Event) -> None:
        if event["event"] == "stopped":
            raise KeyboardInterrupt
        on_event(event)

    phase_reported = False  # the others that this node has done its part
    members: list[Child | Peer] = [*children, *link.peers]
    while running := [member for member in members if not member.ended]:
        signals.check()
        if signals.stop_requested() and stop_deadline is None:
            stop_deadline = time.monotonic() + signals.grace_period() + link.grace
            on_event({"event": "said", "text": "stopping: the last complete round is published first"})
            if not link.request_stop():
                with contextlib.suppress(OSError):  # it is ending by itself
                    children[0].connection.send("stop")
        if stop_deadline is not None and time.monotonic() > stop_deadline:
            raise KeyboardInterrupt
        timeout = min(1.0, stall_timeout / 5) if cause_deadline is None else max(0.0, cause_deadline - time.monotonic())
        waiting_since = time.monotonic()
        ready = wait([signals.wakeup, *(source for member in running for source in member.sources())], timeout)
        if not ready and cause_deadline is not None:
            break
        if time.monotonic() - waiting_since > timeout + stall_timeout / 5:  # this process was stopped, and they with it
            for member in running:
                member.progress_at = member.heartbeat_at = time.monotonic()
        for member in running:
            member.receive(handle)
            if isinstance(member.failure, PeerLost):
                peer_lost = peer_lost or member.failure
                cause_deadline = cause_deadline or time.monotonic() + (
                    _REMOTE_CAUSE_GRACE if link.peers else _CAUSE_GRACE
                )
            elif member.failure is not None:
                return member.failure
        if not phase_reported and all(child.ended for child in children):
            link.finish_phase()
            phase_reported = True
        hung = [member for member in running if not member.ended and member.is_hung(stall_timeout)]
        link.blocked = all(child.is_blocked(stall_timeout) for child in children)
        deadlock = len(running) > 1 and all(member.is_blocked(stall_timeout) for member in running)
        if hung or (deadlock and not all_may_block):
            longest = min(hung or running, key=lambda member: member.progress_at)
            return longest.hang_failure(stall_timeout, on_event)
    return peer_lost
