"""A child process, from both sides: the launcher's view of it, and the code that runs in it.

Each child has a two-way connection to the launcher, over which it sends events and notices the launcher's death. A pipe
replaces its standard output and error, so that its output is recorded.
"""

import codecs
import contextlib
import faulthandler
import importlib
import multiprocessing.process
import multiprocessing.util
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from scaling_fl.errors import JobFailed, PeerLost, UserError
from scaling_fl.progress import Event
from scaling_fl.runtime import signals

OnEvent = Callable[[Event], None]

_STARTUP_GRACE = 60.0  # seconds until a child's first heartbeat: the fork server is still importing
_HEARTBEAT_INTERVAL = 5.0  # seconds
_CLEANUP_GRACE = 2.0  # seconds for libraries to clean up in a child that exits by itself
_CAUSES = {
    signal.SIGKILL: "it was killed, or the system ran out of memory (see `dmesg`; a smaller "
    "batch_size or max_seq_len, or fewer sites, use less memory)",
    signal.SIGBUS: "the system ran out of memory or disk; use fewer sites or a smaller model",
    signal.SIGSEGV: "native code crashed: a bug in a library, or incompatible versions",
}


class Child:
    """A child process, seen from the launcher."""

    def __init__(self, context: Any, target: str, job: tuple[Any, ...], name: str, folder: str, stall_timeout: float):
        self.name = name
        self.waiting = False  # whether it waits for other processes
        # Times of its last progress and its last heartbeat; in the future until the first heartbeat.
        self.progress_at = self.heartbeat_at = time.monotonic() + _STARTUP_GRACE
        self.failure: Exception | None = None
        self.ended = False
        self.connection, child_end = context.Pipe()
        self.output, child_output = context.Pipe(duplex=False)
        temporary_folders = [folder, multiprocessing.util.get_temp_dir()]
        self.process = context.Process(
            target=_child_main,
            args=(name, target, job, child_end, child_output, temporary_folders, stall_timeout / 5),
            daemon=True,
        )
        self.process.start()
        child_end.close()
        child_output.close()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""

    def sources(self) -> list[Any]:
        """The objects to `wait` on."""
        return [s for s in (self.connection, self.output) if not s.closed] + [self.process.sentinel]

    def receive(self, on_event: OnEvent) -> None:
        """Handle everything that has arrived."""
        ended = self.process.exitcode is not None  # first: whatever it sent before ending is handled below
        while not self.connection.closed and self.connection.poll():
            try:
                event = self.connection.recv()
            except (EOFError, OSError):
                self.connection.close()
            else:
                self.heartbeat_at = time.monotonic()
                if event["event"] != "alive" or event["progress"]:
                    self.progress_at = self.heartbeat_at
                if event["event"] == "failed":
                    self.failure = event["failure"]
                elif event["event"] == "alive":
                    self.waiting = event["waiting"]
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
        self.progress_at = time.monotonic()
        for line in lines:
            last_frame = line.rstrip("\r").rsplit("\r", 1)[-1]  # progress bars overwrite their line
            on_event({"event": "output", "source": self.name, "text": last_frame})

    def is_hung(self, stall_timeout: float) -> bool:
        """Whether it has made no progress for too long or, while it waits for others, has sent no heartbeat."""
        now = time.monotonic()
        return now - (self.heartbeat_at if self.waiting else self.progress_at) > stall_timeout

    def is_blocked(self, stall_timeout: float) -> bool:
        """Whether it has been waiting for others for too long. If this holds for all children, they are deadlocked."""
        return self.waiting and time.monotonic() - self.progress_at > stall_timeout

    def hang_failure(self, stall_timeout: float, on_event: OnEvent) -> Exception:
        """The failure to report for a hung child."""
        stack = self.stack(on_event) or "It is suspended, so it can't print its stack trace."
        return JobFailed(
            f"{self.name} made no progress for {stall_timeout:.0f} s and counts as hung (if it was only slow, raise "
            f"stall_timeout). {stack}"
        )

    def stack(self, on_event: OnEvent) -> str:
        """The stack trace of its threads, which it prints itself; empty if it can't."""
        lines: list[str] = []
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(self.process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 1
        while wait([self.output], max(0.0, deadline - time.monotonic())) and not self.output.closed:
            self.receive(lambda event: lines.append(event["text"]) if event["event"] == "output" else on_event(event))
        return "\n".join(lines)

    def kill(self) -> None:
        """Kill it if it is still running."""
        if isinstance(self.failure, UserError):
            self.process.join(_CLEANUP_GRACE)  # a refusal is an orderly exit: let its libraries clean up
        if self.process.exitcode is None:
            self.process.kill()

    def end(self, deadline: float) -> bool:
        """Release its resources after `kill`. Returns False if it hasn't ended at `deadline` (`time.monotonic`)."""
        self.process.join(max(0.0, deadline - time.monotonic()))
        if self.process.exitcode is None:
            multiprocessing.process._children.discard(self.process)  # type: ignore[attr-defined] # or Python's end waits
            return False
        self.process.close()
        self.connection.close()
        self.output.close()
        return True


def _cause(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}, without a message"
    name = signal.Signals(-exit_code).name
    return f"killed by {name}; {_CAUSES.get(signal.Signals(-exit_code), 'the cause is not known')}"


class _LauncherConnection:
    """A child's connection to the launcher (`progress.Send`). Thread-safe."""

    def __init__(self, connection: Connection):
        self._connection, self._lock = connection, threading.Lock()
        self.waiting, self._progress = False, 0
        self.on_stop: Callable[[], None] = lambda: self({"event": "stopped"})

    def __call__(self, event: Event) -> None:
        with self._lock:
            self._connection.send(event)

    def progress(self) -> None:
        self._progress += 1

    def listen(self, temporary_folders: list[str]) -> None:
        """Stop when the launcher says so. If it dies, its end closes: remove its temporary folders and exit."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._connection.recv()
                threading.Thread(target=self.on_stop, daemon=True).start()
        for folder in temporary_folders:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    def send_heartbeats(self, interval: float) -> None:
        """Report every `interval` seconds whether this child has made progress, and whether it waits for others."""
        reported = -1
        while True:
            waiting, now = self.waiting, self._progress  # in this order: progress is counted before waiting ends
            with contextlib.suppress(OSError):
                self({"event": "alive", "progress": now != reported, "waiting": waiting})
            reported = now
            time.sleep(interval)


def _child_main(
    name: str,
    target: str,
    job: tuple[Any, ...],
    connection: Connection,
    output: Connection,
    temporary_folders: list[str],
    interval: float,
) -> None:
    """Entry point of a child: connect to the launcher, run `target`, and report its failure."""
    for stop in signals.STOP_SIGNALS:  # they reach the whole process group; only the launcher acts on them
        signal.signal(stop, signal.SIG_IGN)
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if os.path.isdir(temporary_folders[0]):
        tempfile.tempdir = temporary_folders[0]  # temporary files of a killed child are removed with the work folder
    faulthandler.register(signal.SIGUSR1)  # prints the stack trace of a hung child
    launcher = _LauncherConnection(connection)
    threading.Thread(target=launcher.listen, args=(temporary_folders,), daemon=True).start()
    threading.Thread(target=launcher.send_heartbeats, args=(min(interval, _HEARTBEAT_INTERVAL),), daemon=True).start()
    module, _, function = target.partition(":")
    try:
        getattr(importlib.import_module(module), function)(launcher, *job)
    except BaseException as error:
        if isinstance(error, PeerLost):
            failure: Exception = PeerLost(f"{name}: {error}")
        elif isinstance(error, UserError | JobFailed):
            failure = type(error)(str(error))
        else:
            failure = JobFailed(f"{name} failed:\n{traceback.format_exc().rstrip()}")
        launcher({"event": "failed", "failure": failure})
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, UserError):
            sys.exit(1)
        os._exit(1)
