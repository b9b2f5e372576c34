"""Sacred's file record: a numbered folder for each job, in the layout of its FileStorageObserver."""

import datetime
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from scaling_fl.progress import Event
from scaling_fl.tracking.record import Record, is_part


class FileRecord:
    """`folder/N/`: run.json, config.json, info.json, metrics.json, cout.txt, and the artifacts."""

    throttled = True

    def __init__(self, folder: Path):
        self.folder, self.name, self.title = folder, f"the record in {folder}", "run record"
        self.run: Path | None = None

    def open(self, job_id: str) -> float:
        if (run := find(self.folder, job_id)) is not None:
            self.run = run
            return float(json.loads((run / "info.json").read_text()).get("last_event", 0.0))
        while self.run is None:
            number = 1 + max((int(path.name) for path in self.folder.glob("[0-9]*") if path.name.isdigit()), default=0)
            try:
                (self.folder / str(number)).mkdir(parents=True)
            except FileExistsError:  # another job took it
                continue
            self.run = self.folder / str(number)
        return 0.0

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        assert self.run is not None
        kinds = {event["event"] for event in events}
        whole = "created" in kinds
        if whole:
            self._write("info.json", record.info)  # first, because `find` identifies the folder by it
        with open(self.run / "cout.txt", "w" if whole else "a") as file:
            file.writelines(event["text"] + "\n" for event in events if event["event"] == "output")
        self._write("run.json", record.entry | self._extras(record))
        if kinds <= {"output"}:
            return
        self._write("config.json", record.config)
        self._write("info.json", record.info)
        self._write("metrics.json", {name: record.points(name) for name in record.metrics})
        for name, content in record.artifacts().items():
            _replace(self.run / name, content)

    def _extras(self, record: Record) -> dict[str, Any]:
        """The names of the artifacts and of the source files, which all jobs share in `_sources`."""
        sources = []
        for name, text in record.sources.items():
            md5 = hashlib.md5(text.encode()).hexdigest()
            stored = self.folder / "_sources" / f"{Path(name).stem}_{md5}{Path(name).suffix}"
            if not stored.exists():
                stored.parent.mkdir(exist_ok=True)
                _replace(stored, text.encode())
            sources.append([name, str(stored.relative_to(self.folder))])
        experiment = record.entry.get("experiment", {}) | {"sources": sources}
        return {"experiment": experiment, "artifacts": list(record.artifacts())}

    def location(self) -> str:
        return str(self.run or "")

    def explain(self, error: Exception) -> str:
        return f"{type(error).__name__}: {error}"

    def _write(self, name: str, value: Any) -> None:
        assert self.run is not None
        _replace(self.run / name, json.dumps(value, indent=2, sort_keys=True, default=_plain).encode())


def load(run: Path) -> Record:
    """The record in a run's folder. Raises `OSError`, `KeyError`, `ValueError` or `TypeError` if it can't be read."""
    config, info, entry, metrics = (
        json.loads((run / f"{name}.json").read_text()) for name in ("config", "info", "run", "metrics")
    )
    files = [path for path in sorted(run.iterdir()) if path.name == "cout.txt" or is_part(path.name)]
    return Record.from_parts(config, info, entry, metrics, {path.name: path.read_bytes() for path in files})


def find(folder: Path, job_id: str) -> Path | None:
    """The job's numbered folder, or `None`."""
    for info in folder.glob("[0-9]*/info.json"):
        try:
            if json.loads(info.read_text()).get("job_id") == job_id:
                return info.parent
        except (OSError, ValueError, AttributeError):  # not written by this program
            continue
    return None


def _replace(path: Path, content: bytes) -> None:
    """Replace the file atomically."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _plain(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} in a record")
