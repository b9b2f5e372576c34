"""Replaying a job's events into its targets: file records, MongoDB, and the copy beside the checkpoints.

A replay reads the event file from where the target is up to date. After any failure it starts again from the first
event, so that outages, resumes, repeated rounds and a change of machine need no special case.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.record import Record, utc

Attach = Callable[[Record], dict[str, bytes]]  # further artifacts of a complete record, by name
_HEARTBEAT = 10.0  # seconds between heartbeats, and between attempts to reach a failed target
_MIN_PAUSE = 1.0  # seconds between writes, however many events arrive
_PAUSE_FACTOR = 10  # the pause after a write is at least this many times its duration


class Target(Protocol):
    """A record of a job. Its methods may raise any exception; slow ones need a time-out."""

    name: str  # in messages
    title: str  # in the list of records at the end of a job; empty: not listed
    throttled: bool  # whether there is a pause between writes

    def open(self, job_id: str) -> float:
        """Find or create the job's record. Returns the time of the last event in it; 0 if there are none."""

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        """Update the target to `record`. `events`: those since the last write; all, in the first write after `open`."""

    def location(self) -> str:
        """Where the record is, for messages; empty before `open`."""

    def explain(self, error: Exception) -> str:
        """The cause of an error and its remedy, without secrets."""


def nothing(record: Record) -> dict[str, bytes]:
    """Attach nothing."""
    return {}


class Mirror:
    """The copy of the event file beside the checkpoints, because a preempted container loses its disk.

    Where there are no checkpoints, as in a `sync` on another machine, there is no copy.
    """

    name, title, throttled = "the copy of the events beside the checkpoints", "", False

    def __init__(self, checkpoints: CheckpointStore, lease: Lease | None = None):
        self._checkpoints, self._lease = checkpoints, lease

    def open(self, job_id: str) -> float:
        return 0.0

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        due = any(event["event"] in ("started", "checkpoint", "restarted", *event_file.ENDS) for event in events)
        mine = self._lease is None or self._lease.taken_over_by is None
        if due and mine and self._checkpoints.exists():
            self._checkpoints.publish_file(path, event_file.MIRROR)

    def location(self) -> str:
        return ""

    def explain(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"


class Replay:
    """Keeps one target up to date; after `start`, in a background thread."""

    def __init__(self, path: Path, target: Target, attach: Attach = nothing):
        self.path, self.target, self._attach = path, target, attach
        self.trouble: Exception | None = None  # the error of the last step
        self._record: Record | None = None
        self._offset = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._new_events, self._closing = threading.Event(), threading.Event()

    def step(self) -> None:
        """Bring the target up to date, or store the error in `trouble`."""
        try:
            last_known = 0.0
            if self._record is None:
                job_id = event_file.job_id(self.path)
                assert job_id is not None
                last_known = self.target.open(job_id)
                self._record, self._offset = Record(), 0
            events, offset = event_file.read(self.path, self._offset)
            for event in events:
                self._record.apply(event)
            if self._record.info["last_event"] < last_known:
                raise UserError(
                    f"{self.target.name} has later events than {self.path}; bring it up to date where the job ran last, "
                    "or with its checkpoints_dir"
                )
            if self._record.entry["status"] == "RUNNING":
                self._record.entry["heartbeat"] = utc(time.time())
            if self._record.entry["status"] == "COMPLETED":
                self._record.attached = self._attach(self._record)
            self.target.write(self._record, events, self.path)
            self._offset, self.trouble = offset, None
        except Exception as error:  # every target raises its own exceptions; none may stop a job
            self._record, self.trouble = None, error

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        """Tell the thread that events were appended."""
        self._new_events.set()

    def finish(self) -> None:
        """Have the thread write the remaining events and end."""
        self._closing.set()
        self._new_events.set()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the thread to end. Returns whether the target is up to date."""
        if self._thread.ident is None:  # Ctrl-C came before `start`; a later `sync` replays the events
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive() and self.trouble is None

    def describe_trouble(self) -> str:
        """The error of the target, for messages."""
        trouble = self.trouble
        if isinstance(trouble, UserError):
            return str(trouble)
        return f"{self.target.name}: {self.target.explain(trouble) if trouble else 'no answer in time'}"

    def _run(self) -> None:
        while True:
            self._new_events.clear()
            last = self._closing.is_set()  # read first: every event appended before `finish` must be replayed
            began = time.monotonic()
            self.step()
            if last:
                return
            took = time.monotonic() - began
            if self.trouble is not None or self.target.throttled:
                self._closing.wait(max(_MIN_PAUSE, _PAUSE_FACTOR * took) if self.trouble is None else _HEARTBEAT)
            self._new_events.wait(_HEARTBEAT)
