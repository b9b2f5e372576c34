"""Processes: the preparation child, then one worker per site. The launcher watches them, and stays free of torch.

Children come from a fork server that has imported torch and transformers once. Each has a two-way connection to
the launcher, over which it sends events and notices the launcher's death, and a pipe in place of its standard
output and error, so that Sacred can capture what it prints.
"""

import codecs
import contextlib
import importlib
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from scaling_fl.config import Config
from scaling_fl.errors import JobFailed, PeerLost, UserError
from scaling_fl.memory import SharedMemory
from scaling_fl.plan import Event, Plan

OnEvent = Callable[[Event], None]

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
_CAUSES = {
    signal.SIGKILL: "somebody killed it, or the system ran out of memory (see `dmesg`; fewer sites, "
    "a smaller batch_size or max_seq_len need less)",
    signal.SIGBUS: "the system ran out of memory or disk; use fewer sites or a smaller model",
    signal.SIGSEGV: "native code crashed: a bug in a library, or versions that don't go together",
}


_interrupted = False


def interrupt(signal_number: int, frame: types.FrameType | None) -> None:
    """A signal handler: `KeyboardInterrupt`, here or soon. Python loses one that comes while it runs a finaliser."""
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


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

    run("scaling_fl.prepare:prepare", [(config, folder)], ["the preparation"], folder, keep_plan)
    return plans[0]


def train(plan: Plan, on_event: OnEvent) -> None:
    """Run one worker per site until all are done. Raises `JobFailed` with the first failure."""
    memory = SharedMemory()
    try:
        jobs = [(plan, rank, memory) for rank in range(len(plan.devices))]
        names = [f"site {rank} ({device})" for rank, device in enumerate(plan.devices)]
        run("scaling_fl.worker:work", jobs, names, plan.folder, on_event)
    finally:
        memory.close()


def run(target: str, jobs: Sequence[tuple[Any, ...]], names: list[str], folder: str, on_event: OnEvent) -> None:
    """Run `module:function(send, *job)` in one child per job; return when all have ended well.

    `names` stand in messages; `folder` is removed by a child that finds the launcher dead. Raises the failure of
    the child that failed first, after all others were stopped.
    """
    context = _fork_server()
    children: list[_Child] = []
    try:
        with _hidden_main():
            for job, name in zip(jobs, names, strict=True):
                try:
                    children.append(_Child(context, target, job, name, folder))
                except (EOFError, ConnectionError) as error:
                    raise JobFailed("the process that starts all others is gone: killed, or out of memory") from error
        failure = _watch(children, on_event)
    finally:
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
    # The server doesn't get this process's sys.path, and would pass over modules that it can't find.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*sys.path, before]))
    on_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is the launcher's business alone
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Children import the main module again, with Sacred and all; these need nothing of it."""
    main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


class _Child:
    """A child process, seen from the launcher."""

    def __init__(self, context: Any, target: str, job: tuple[Any, ...], name: str, folder: str):
        self.name = name
        self.failure: Exception | None = None
        self.ended = False
        self.connection, theirs = context.Pipe()
        self.output, their_output = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_enter, args=(name, target, job, theirs, their_output, folder), daemon=True
        )
        self.process.start()
        theirs.close()
        their_output.close()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def sources(self) -> list[Any]:
        """What to wait for."""
        return [s for s in (self.connection, self.output) if not s.closed] + [self.process.sentinel]

    def receive(self, on_event: OnEvent) -> None:
        """Handle all that has arrived."""
        ended = self.process.exitcode is not None  # first: what it sent before its end is handled below
        while not self.connection.closed and self.connection.poll():
            try:
                event = self.connection.recv()
            except (EOFError, ConnectionError):
                self.connection.close()
            else:
                if event["event"] == "failed":
                    self.failure = event["failure"]
                else:
                    on_event(event)
        while not self.output.closed and self.output.poll():
            data = os.read(self.output.fileno(), 65536)
            self._print(self._decoder.decode(data, final=not data), on_event)
            if not data:
                self.output.close()
        if ended:
            self.ended = True
            if self._line:
                self._print("\n", on_event)
            if self.process.exitcode != 0 and self.failure is None:
                self.failure = JobFailed(f"{self.name} ended: {_cause(self.process.exitcode)}")

    def _print(self, text: str, on_event: OnEvent) -> None:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            last_frame = line.rstrip("\r").rsplit("\r", 1)[-1]  # progress bars return to the line's beginning
            on_event({"event": "output", "source": self.name, "text": last_frame})

    def end(self) -> None:
        """Stop it at once if it still runs, and let go of everything."""
        if isinstance(self.failure, UserError):
            self.process.join(_GRACE)  # nothing is broken: its libraries tidy up
        if self.process.exitcode is None:
            self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()
        self.output.close()


def _watch(children: list[_Child], on_event: OnEvent) -> Exception | None:
    """Pass events on until all children have ended, or one has failed. Returns the first failure's cause.

    When a worker dies, the others' connections to it break, and may be reported before its death is seen: after
    a broken connection the others are heard for a moment, and it gives way to any other cause.
    """
    lost: Exception | None = None
    deadline: float | None = None
    while running := [child for child in children if not child.ended]:
        if _interrupted:
            raise KeyboardInterrupt
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not wait([source for child in running for source in child.sources()], timeout):
            break
        for child in running:
            child.receive(on_event)
            if isinstance(child.failure, PeerLost):
                lost = lost or child.failure
                deadline = deadline or time.monotonic() + _GRACE
            elif child.failure is not None:
                return child.failure
    return lost


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"it exited with status {exit_code} without a word"
    name = signal.Signals(-exit_code).name
    return f"killed by {name}; {_CAUSES.get(signal.Signals(-exit_code), 'the likely cause is not known')}"


def _enter(
    name: str, target: str, job: tuple[Any, ...], connection: Connection, output: Connection, folder: str
) -> None:
    """The child's side."""
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they reach the whole group; the launcher acts
        signal.signal(stop, signal.SIG_IGN)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    threading.Thread(target=_die_with_launcher, args=(connection, folder), daemon=True).start()
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(connection.send, *job)
    except BaseException as error:
        if isinstance(error, PeerLost):
            failure: Exception = PeerLost(f"{name}: {error}")
        elif isinstance(error, UserError | JobFailed):
            failure = type(error)(str(error))
        else:
            failure = JobFailed(f"{name} failed:\n{traceback.format_exc().rstrip()}")
        connection.send({"event": "failed", "failure": failure})
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, UserError):
            sys.exit(1)
        os._exit(1)


def _die_with_launcher(connection: Connection, folder: str) -> None:
    """Wait for the launcher's end of the connection to close; then nobody is left to tidy up."""
    with contextlib.suppress(EOFError, OSError):
        connection.recv()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
