"""The event file: what happened to a job, one JSON object per line, only ever appended to. All records come from it."""

import contextlib
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint import Checkpoints
from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.plan import Event

MIRROR = "events.jsonl"  # its copy beside the checkpoints
ENDS = ("completed", "failed", "interrupted", "died")


class EventLog:
    """A job's event file, open for appending. Threads take turns."""

    def __init__(self, path: Path):
        """Go on with the file, or begin it. Raises `UserError` where it can't be written."""
        self.path, self._turn = path, threading.Lock()
        self.on_append: Callable[[str], None] = lambda event: None  # called with the event's kind
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            events = read(path)[0] if path.exists() else []
            self._file = open(path, "ab")  # noqa: SIM115 (open for the job's life)
            if path.read_bytes()[-1:] not in (b"", b"\n"):  # the machine crashed within a line
                self._file.write(b"\n")
        except OSError as error:
            raise UserError(
                f"{path}: it can't be written ({error.strerror}); type the command in a folder of yours, or give -u "
                "for no record"
            ) from error
        self._last = events[-1]["time"] if events else 0.0
        self.sources = {event["name"]: event["text"] for event in events if event["event"] == "source"}
        self.rounds = {event["round"] for event in events if event["event"] == "round"}
        if not events:
            self.append("created", job_name=path.stem, job_id=uuid.uuid4().hex)
        elif is_open(events):
            self.append("died", at=events[-1]["time"])
        self.end = next((event["event"] for event in reversed(events) if event["event"] in ENDS), None)

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; `fields` are plain values. A killed process loses nothing of what was appended."""
        with self._turn:
            # Every line has its own time, later than all before it, so that copies can be merged.
            self._last = max(round(time.time(), 6), round(self._last + 1e-6, 6))
            line = json.dumps({"time": self._last, "event": event} | fields, allow_nan=False)
            try:
                self._file.write(line.encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"{self.path}: it can't be written ({error.strerror}); make room, and type the command again"
                ) from error
        self.on_append(event)

    def close(self) -> None:
        """Force it to the disk."""
        with contextlib.suppress(OSError):  # what it couldn't write, `append` said
            self._file.close()


def check_writable(folder: Path) -> None:
    """Raises `UserError` where nothing can be recorded in `folder`. Leaves no trace."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"scaling_fl")
    except OSError as error:
        raise UserError(
            f"{folder}: it can't be written ({error.strerror}); type the command in a folder of yours, or give -u "
            "for no record"
        ) from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events from byte `offset` on, and the offset behind the last complete line."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return [event for line in complete.split(b"\n") if (event := _parsed(line))], offset + len(complete)


def file_of(runs: Path, config: Config) -> Path:
    """The job's event file in `runs`, whether there is one or not."""
    return runs / "_events" / f"{config.job_name}.jsonl"


def history(runs: Path, config: Config) -> Path:
    """The job's event file in `runs`, after its copy beside the checkpoints has added what this disk has missed.

    Nothing is written where both are the same, or neither exists. Raises `UserError` where one can't be read.
    """
    path = file_of(runs, config)
    here = path.read_bytes() if path.exists() else b""
    there = Checkpoints(config.checkpoints_dir).read(MIRROR) if config.checkpoints_dir is not None else None
    merged = merge(here, there or b"")
    if merged != merge(here):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(merged)
        temporary.replace(path)
    return path


def merge(*copies: bytes) -> bytes:
    """The complete lines of several copies of a job's event file, each once, by their times."""
    times = {line: event["time"] for copy in copies for line in copy.split(b"\n") if (event := _parsed(line))}
    return b"".join(line + b"\n" for line in sorted(times, key=times.__getitem__))


def job_id(path: Path) -> str | None:
    """What tells the job from all others of its name; `None` where it hasn't begun."""
    events = read(path)[0] if path.exists() else []
    return next((str(event["job_id"]) for event in events if event["event"] == "created"), None)


def is_open(events: list[Event]) -> bool:
    """Whether the last start has no end."""
    kinds = [event["event"] for event in events if event["event"] in ("started", *ENDS)]
    return bool(kinds) and kinds[-1] == "started"


def _parsed(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:  # a torn line: the disk was full, or the machine crashed
        return None
    return event if isinstance(event, dict) and "event" in event and "time" in event else None
