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
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from scaling_fl import signals
from scaling_fl.child import Child, OnEvent
from scaling_fl.config import Config
from scaling_fl.errors import JobFailed, PeerLost
from scaling_fl.memory import SharedMemory
from scaling_fl.plan import Event, Plan

_GRACE = 2.0  # seconds in which the cause of a failure may still arrive behind its consequences
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
}


def begin() -> None:
    """Start the process that imports what all children need. It needs no waiting for; without this, `run` starts it."""
    _fork_server()


def prepare(config: Config, folder: str, on_event: OnEvent) -> Plan:
    """Run the preparation child. Raises `UserError` on bad input, `JobFailed` on any other failure."""
    plans: list[Plan] = []

    def keep_plan(event: Event) -> None:
        if event["event"] == "prepared":
            plans.append(event["plan"])
        else:
            on_event(event)

    run("scaling_fl.prepare:prepare", [(config, folder)], ["the preparation"], folder, keep_plan, config.stall_timeout)
    return plans[0]


def train(plan: Plan, on_event: OnEvent) -> None:
    """Run one worker per site until all are done. Raises `JobFailed` with the first failure."""
    memory = SharedMemory()
    try:
        jobs = [(plan, rank, memory) for rank in range(len(plan.devices))]
        with signals.asking_first():
            run("scaling_fl.worker:work", jobs, plan.worker_names(), plan.folder, on_event, plan.config.stall_timeout)
    finally:
        memory.close()


def run(
    target: str,
    jobs: Sequence[tuple[Any, ...]],
    names: list[str],
    folder: str,
    on_event: OnEvent,
    stall_timeout: float = 600.0,
) -> None:
    """Run `module:function(send, *job)` in one child per job; return when all have ended well.

    `names` stand in messages; `folder` is removed by a child that finds the launcher dead. A child without progress
    for `stall_timeout` seconds counts as failed. Raises the failure of the child that failed first, after all others
    were stopped, and `KeyboardInterrupt` when the job was asked to end, after the first child has published.
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
        failure = _watch(children, on_event, stall_timeout)
    finally:
        with signals.deferred():
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
    context.set_forkserver_preload(["scaling_fl.prepare", "scaling_fl.worker"])
    before = os.environ.get("PYTHONPATH")
    multiprocessing.resource_tracker.ensure_running()  # first: it meddles with the signals that are blocked
    # What ends a job is the launcher's business alone. The server inherits that these are blocked, and goes with the
    # launcher; one that comes meanwhile is delivered after it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signals.STOPS)
    try:
        # The server doesn't get this process's sys.path, and would pass over modules that it can't find.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, before]))
        multiprocessing.forkserver.ensure_running()
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


def _watch(children: list[Child], on_event: OnEvent, stall_timeout: float) -> Exception | None:
    """Pass events on until all children have ended, or one has failed. Returns the first failure's cause.

    When a worker dies, the others' connections to it break, and may be reported before its death is seen: after
    a broken connection the others are heard for a moment, and it gives way to any other cause.
    """
    lost: Exception | None = None
    deadline: float | None = None
    stop_by: float | None = None

    def handle(event: Event) -> None:
        if event["event"] == "stopped":
            raise KeyboardInterrupt
        on_event(event)

    while running := [child for child in children if not child.ended]:
        signals.check()
        if signals.asked() and stop_by is None:
            stop_by = time.monotonic() + signals.patience()
            on_event({"event": "said", "text": "stopping: the last complete round is published first"})
            with contextlib.suppress(OSError):  # it is ending by itself
                running[0].connection.send("stop")
        if stop_by is not None and time.monotonic() > stop_by:
            raise KeyboardInterrupt
        timeout = min(1.0, stall_timeout / 5) if deadline is None else max(0.0, deadline - time.monotonic())
        waiting_since = time.monotonic()
        ready = wait([signals.wakeup, *(source for child in running for source in child.sources())], timeout)
        if not ready and deadline is not None:
            break
        if time.monotonic() - waiting_since > timeout + stall_timeout / 5:  # this process was stopped, and they with it
            for child in running:
                child.progress_at = child.sign_at = time.monotonic()
        for child in running:
            child.receive(handle)
            if isinstance(child.failure, PeerLost):
                lost = lost or child.failure
                deadline = deadline or time.monotonic() + _GRACE
            elif child.failure is not None:
                return child.failure
        hanging = [child for child in running if not child.ended and child.hangs(stall_timeout)]
        if hanging or (len(running) > 1 and all(child.waits_for_nobody(stall_timeout) for child in running)):
            return _hung(hanging or running, on_event, stall_timeout)
    return lost


def _hung(children: list[Child], on_event: OnEvent, stall_timeout: float) -> Exception:
    """The failure of the child that has been without progress for longest."""
    child = min(children, key=lambda child: child.progress_at)
    return JobFailed(
        f"{child.name} made no progress for {stall_timeout:.0f} s and counts as hung (if that can be: raise "
        f"stall_timeout). {child.stack(on_event) or 'It is stopped, and tells nothing.'}"
    )
