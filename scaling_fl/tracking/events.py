"""The event file of a job: one JSON object per line, append-only. All records are derived from it."""

import contextlib
import fcntl
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.progress import Event

MIRROR = "events.jsonl"  # the copy beside the checkpoints
ENDS = ("completed", "failed", "interrupted", "died")  # events that end a run


class EventLog:
    """A job's event file, open for appending. Thread-safe."""

    def __init__(self, path: Path):
        """Open or create the file. Raises `UserError` if it isn't writable, or another live run has it open."""
        self.path, self._lock = path, threading.Lock()
        self.on_append: Callable[[str], None] = lambda event: None  # called with the kind of each event
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "ab")  # noqa: SIM115 (closed by `close`)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when the process ends
            events = read(path)[0]
            if path.read_bytes()[-1:] not in (b"", b"\n"):  # the machine crashed while writing a line
                self._file.write(b"\n")
        except BlockingIOError as error:
            raise UserError(
                f"job_name={path.stem}: another run of this job is writing to {path}; wait for it to end, or choose "
                "another job_name"
            ) from error
        except OSError as error:
            raise UserError(
                f"{path}: cannot write to it ({error.strerror}); run the command in a folder you can write to, or pass -u "
                "for no record"
            ) from error
        self._last = events[-1]["time"] if events else 0.0
        self.sources = {event["name"]: event["text"] for event in events if event["event"] == "source"}
        self._rounds = rounds_of(events)
        if not events:
            self.append("created", job_name=path.stem, job_id=uuid.uuid4().hex)
        self.end = next((event["event"] for event in reversed(events) if event["event"] in ENDS), None)
        if _is_unfinished(events):
            self.append("died", at=events[-1]["time"])
            self.end = "died"  # whatever the end of an earlier run was

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with these JSON `fields`. It survives a kill of the process."""
        with self._lock:
            # Times strictly increase, so that copies can be merged by them.
            self._last = max(round(time.time(), 6), round(self._last + 1e-6, 6))
            line = json.dumps({"time": self._last, "event": event} | fields, allow_nan=False)
            try:
                self._file.write(line.encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise UserError(
                    f"{self.path}: cannot write to it ({error.strerror}); free some space, and run the command again"
                ) from error
        self.on_append(event)

    def restore(self, rounds: Mapping[str, Mapping[str, Any]]) -> None:
        """Append rounds that only the checkpoint knows: the machine that should have appended them was lost."""
        for number, metrics in sorted(rounds.items(), key=lambda item: int(item[0])):
            if int(number) not in self._rounds:
                self.append("round", round=int(number), metrics=metrics)

    def close(self) -> None:
        """Close the file, and release it for other runs."""
        with contextlib.suppress(OSError):  # `append` has reported the full disk
            self._file.close()


def check_writable(
    folder: Path, remedy: str = "run the command in a folder you can write to, or pass -u for no record"
) -> None:
    """Raises `UserError` with the remedy if `folder` isn't writable. Leaves no trace."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"scaling_fl")
    except OSError as error:
        raise UserError(f"{folder}: cannot write to it ({error.strerror}); {remedy}") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events from byte `offset` on, and the offset after the last complete line."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return parse(complete), offset + len(complete)


def parse(data: bytes) -> list[Event]:
    """The events in the content of an event file. Lines that aren't events are left out."""
    return [event for line in data.split(b"\n") if (event := _parse(line))]


def path_of(runs: Path, config: Config) -> Path:
    """The path of the job's event file in `runs`, whether it exists or not."""
    return runs / "_events" / f"{config.job_name}.jsonl"


def merge_mirror(runs: Path, config: Config) -> Path:
    """Merge the copy beside the checkpoints into the job's event file in `runs`; returns the path of that file.

    Writes nothing if the copy adds nothing. Raises `UserError` if the copy can't be read, or belongs to another job.
    """
    path = path_of(runs, config)
    here = path.read_bytes() if path.exists() else b""
    there = (config.checkpoints_dir is not None and CheckpointStore(config.checkpoints_dir).read(MIRROR)) or b""
    mine, theirs = (_created_event(merge(copy)) for copy in (here, there))
    if theirs is not None and theirs["job_name"] != config.job_name:
        raise UserError(
            f"checkpoints_dir={config.checkpoints_dir}: it holds the checkpoints of job {theirs['job_name']}; "
            f"set job_name={theirs['job_name']} to resume it, or choose another folder"
        )
    if mine is not None and theirs is not None and mine["job_id"] != theirs["job_id"]:
        raise UserError(
            f"job_name={config.job_name}: {path} and checkpoints_dir={config.checkpoints_dir} hold "
            "different jobs of this name; to resume the latter, run the command in another folder"
        )
    merged = merge(here, there if theirs else b"")
    if merged != merge(here):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(merged)
        temporary.replace(path)
    return path


def merge(*copies: bytes) -> bytes:
    """The complete lines of several copies of an event file, without duplicates, in order of time."""
    times = {line: event["time"] for copy in copies for line in copy.split(b"\n") if (event := _parse(line))}
    return b"".join(line + b"\n" for line in sorted(times, key=times.__getitem__))


def job_id(path: Path) -> str | None:
    """The id that distinguishes the job from others of the same name; `None` if it has no events."""
    created = _created_event(path.read_bytes()) if path.exists() else None
    return None if created is None else str(created["job_id"])


def _created_event(data: bytes) -> Event | None:
    events = (_parse(line) for line in data.split(b"\n"))
    return next((event for event in events if event and event["event"] == "created"), None)


def rounds_of(events: list[Event]) -> set[int]:
    """The recorded rounds. A resumed job discards those after its checkpoint, or all if there is no checkpoint."""
    found: set[int] = set()
    for event in events:
        if event["event"] == "started":
            after = event["start"]["after_round"]
            found = {round_ for round_ in found if round_ <= after > 0}
        elif event["event"] == "round":
            found.add(event["round"])
    return found


def _is_unfinished(events: list[Event]) -> bool:
    """Whether the last run has no end."""
    kinds = [event["event"] for event in events if event["event"] in ("started", *ENDS)]
    return bool(kinds) and kinds[-1] == "started"


def _parse(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:  # a partial line: the disk was full, or the machine crashed
        return None
    if not isinstance(event, dict) or type(event.get("time")) not in (int, float) or "event" not in event:
        return None  # not written by this program
    return event
