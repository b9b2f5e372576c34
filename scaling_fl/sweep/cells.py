"""The cells of a sweep: one job each, with a readable name; and how far each has come."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from scaling_fl import host
from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config import compatibility
from scaling_fl.config.key_help import as_command_line
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.tracking import events
from scaling_fl.tracking.record import Record

RUNS = Path("runs")
_MAX_NAME = 120  # characters; a job_name has 128 at most


@dataclass(frozen=True)
class Cell:
    """One job of a sweep."""

    keys: Mapping[str, Any]  # as a user would type them, job_name included
    varied: Mapping[str, Any]  # of these, the ones that the sweep varies
    config: Config

    @property
    def name(self) -> str:
        return str(self.config.job_name)

    @property
    def num_processes(self) -> int:
        return len(self.config.site_ids)

    def words(self) -> list[str]:
        """The arguments of `scripts/train_federated.py`."""
        return ["with", *(f"{key}={as_command_line(value)}" for key, value in self.keys.items())]


class State(NamedTuple):
    """How far a cell has come."""

    status: str  # new, started, complete, or changed: its record has other settings
    round: int = 0
    record: Record | None = None
    reason: str = ""


def named_cells(
    sweep: str,
    base: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    zipped: Sequence[tuple[str, ...]] = (),
    cases: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> list[Cell]:
    """A cell for each row of varied keys. Of keys that vary together, the first names the cell if it suffices.

    `cases`: further keys of the rows, by their `case`.
    """
    unnamed = {key for group in zipped for key in group[1:]}
    names = [_job_name(sweep, {key: value for key, value in row.items() if key not in unnamed}) for row in rows]
    counts = Counter(names)
    cells = []
    for name, row in zip(names, rows, strict=True):
        if counts[name] > 1 or len(name) > _MAX_NAME:
            digest = hashlib.sha256(repr(sorted(row.items(), key=lambda item: item[0])).encode()).hexdigest()[:8]
            name = f"{name[: _MAX_NAME - 9]}-{digest}"
        of_case = cases.get(row.get("case", ""), {})
        keys = {"job_name": name, **base, **of_case, **row}
        for key in ("job_name", "checkpoint", "csv_path"):
            if any(key in given for given in (base, of_case, row)):
                raise UserError(f"{key}: a sweep sets or doesn't use it; leave it out")
        try:
            config = Config.from_mapping(keys).named(name)
        except UserError as error:
            raise UserError(f"cell {name}: {error}") from error
        cells.append(Cell(keys, row, config))
    if len({cell.name for cell in cells}) < len(cells):
        raise UserError(f"sweep {sweep}: two cells have the same keys; leave a value out, or vary `seed`")
    folders = Counter(cell.config.checkpoints_dir for cell in cells if cell.config.checkpoints_dir is not None)
    if shared := [folder for folder, number in folders.items() if number > 1]:
        raise UserError(f"checkpoints_dir={shared[0]}: all cells would write there; add {{job_name}} to it")
    return cells


def _job_name(sweep: str, varied: Mapping[str, Any]) -> str:
    parts = [f"{key}-{_short(value)}" for key, value in varied.items()]
    return ".".join([sweep, *parts])


def _short(value: Any) -> str:
    text = as_command_line(value)
    if "/" in text:  # a path, or an id on the hub
        text = text.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_.") or "x"


def state(cell: Cell) -> State:
    """How far the cell has come, by its events in `runs/`, or beside its checkpoints if another machine ran it.

    Raises `UserError` if they can't be read.
    """
    path = events.path_of(RUNS, cell.config)
    copies = [path.read_bytes()] if path.exists() else []
    if cell.config.checkpoints_dir is not None and (
        there := CheckpointStore(cell.config.checkpoints_dir).read(events.MIRROR)
    ):
        copies.append(there)
    records = [record for copy in copies if (record := _record(copy)) is not None]
    if not records:
        return State("new")
    record = max(records, key=lambda found: float(found.info["last_event"]))
    round_ = int(record.result()["round"])
    try:
        compatibility.check_config(cell.config, record.config)
    except UserError as error:
        return State("changed", round_, record, str(error))
    complete = record.entry["status"] == "COMPLETED" and round_ >= cell.config.num_rounds
    return State("complete" if complete else "started", round_, record)


def _record(content: bytes) -> Record | None:
    try:
        record = Record.from_events(events.parse(content))
        return record if record.info["starts"] else None
    except (KeyError, TypeError, ValueError):  # not written by this program: the job itself refuses it
        return None


def is_held(cell: Cell) -> bool:
    """Whether a run of this job is in progress: on this machine, by its lock, or on another, by its lease."""
    if host.is_locked(cell.name):
        return True
    folder = cell.config.checkpoints_dir
    return folder is not None and Lease(CheckpointStore(folder), cell.name).is_live_elsewhere()
