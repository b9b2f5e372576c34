"""Replaying a job's events into the locations where it is looked at: files, MongoDB, and the copy beside the checkpoints.

A replay reads the event file from where the target is up to date. After any failure it begins again from the first
event, so that an outage, a resume, a round that is run again and another machine are all the same case.
"""

import threading
import time
from pathlib import Path
from typing import Protocol

from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import Checkpoints
from scaling_fl.errors import UserError
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.record import Record, utc

_HEARTBEAT = 10.0  # seconds between signs of life, and between attempts to reach a target
_MIN_PAUSE = 1.0  # seconds between writes, however much happens
_PAUSE_FACTOR = 10  # times as long as a write took is the pause after it at least


class Target(Protocol):
    """A place that shows a job. Its methods raise whatever goes wrong; none may take long without a time-out."""

    name: str  # for the user, in a sentence
    title: str  # and in the list of what was written where

    throttled: bool  # whether it is spared where much happens

    def open(self, job_id: str) -> float:
        """Find the job's place, or make it. Returns the time of the last event that it tells of; 0: of none."""

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        """Bring the place up to `record`. `events` are new since the last write; the first after `open` has them all."""

    def location(self) -> str:
        """Where it is, for the user; empty before `open`."""

    def explain(self, error: Exception) -> str:
        """What an error means, and what mends it. Tells no secrets."""


class Mirror:
    """The copy of the event file beside the checkpoints: a preempted container loses its disk."""

    name, title, throttled = "the copy of the events beside the checkpoints", "", False

    def __init__(self, checkpoints: Checkpoints, lease: Lease | None = None):
        self._checkpoints, self._lease = checkpoints, lease

    def open(self, job_id: str) -> float:
        return 0.0

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        due = any(event["event"] in ("started", "checkpoint", "restarted", *event_file.ENDS) for event in events)
        if due and (self._lease is None or self._lease.taken_over_by is None):
            self._checkpoints.publish_file(path, event_file.MIRROR)

    def location(self) -> str:
        return ""

    def explain(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"


class Replay:
    """Keeps one target up to date, in a thread of its own once it is started."""

    def __init__(self, path: Path, target: Target):
        self.path, self.target = path, target
        self.trouble: Exception | None = None  # why the target isn't up to date
        self._record: Record | None = None
        self._offset = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._new_events, self._closing = threading.Event(), threading.Event()

    def step(self) -> None:
        """Bring the target up to date, or note the trouble."""
        try:
            newest = 0.0
            if self._record is None:
                job_id = event_file.job_id(self.path)
                assert job_id is not None
                newest = self.target.open(job_id)
                self._record, self._offset = Record(), 0
            events, offset = event_file.read(self.path, self._offset)
            for event in events:
                self._record.apply(event)
            if self._record.info["last_event"] < newest:
                raise UserError(
                    f"{self.target.name} tells of later events than {self.path}; bring it up to date where those are: where "
                    "the job ran last, or with its checkpoints_dir"
                )
            if self._record.entry["status"] == "RUNNING":
                self._record.entry["heartbeat"] = utc(time.time())
            self.target.write(self._record, events, self.path)
            self._offset, self.trouble = offset, None
        except Exception as error:  # each target has its own; none may stop a job
            self._record, self.trouble = None, error

    def start(self) -> None:
        self._thread.start()

    def notify(self) -> None:
        """There is something new in the file."""
        self._new_events.set()

    def finish(self) -> None:
        """Nothing more will be appended."""
        self._closing.set()
        self._new_events.set()

    def wait(self, timeout: float) -> bool:
        """Until the target has all, for `timeout` seconds at most. Returns whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive() and self.trouble is None

    def describe_trouble(self) -> str:
        """What the trouble is, for the user."""
        trouble = self.trouble
        if isinstance(trouble, UserError):
            return str(trouble)
        return f"{self.target.name}: {self.target.explain(trouble) if trouble else 'it does not answer in time'}"

    def _run(self) -> None:
        while True:
            self._new_events.clear()
            last = self._closing.is_set()  # before reading: what was appended before it is replayed
            began = time.monotonic()
            self.step()
            if last:
                return
            took = time.monotonic() - began
            if self.trouble is not None or self.target.throttled:
                self._closing.wait(max(_MIN_PAUSE, _PAUSE_FACTOR * took) if self.trouble is None else _HEARTBEAT)
            self._new_events.wait(_HEARTBEAT)
