"""How far a cell has come, by its records."""

import json
import os
import time
from pathlib import Path

import pytest

from scaling_fl import host
from scaling_fl.checkpoint import lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.sweep import cells
from scaling_fl.sweep.cells import Cell
from tests.reporting import builders

BASE = {"num_rounds": 2, "batch_size": 4, "num_local_epochs": 2, "num_sites": 3, "checkpoints_dir": "out/{job_name}"}


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cell:
    monkeypatch.chdir(tmp_path)
    return cells.named_cells("s", BASE, [{"seed": 1}])[0]


def record(folder: Path, **keys: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return builders.job(folder, "s.seed-1", **({"seed": 1} | keys))  # type: ignore[arg-type]


def test_a_cell_without_records_is_new(cell: Cell) -> None:
    assert cells.state(cell).status == "new"


def test_a_completed_job_is_complete_and_one_with_fewer_rounds_is_started(cell: Cell) -> None:
    record(Path("runs/_events"))
    found = cells.state(cell)
    assert (found.status, found.round) == ("complete", 2)
    more = cells.named_cells("s", BASE | {"num_rounds": 3}, [{"seed": 1}])[0]
    assert (cells.state(more).status, cells.state(more).round) == ("started", 2)


def test_an_interrupted_job_is_started(cell: Cell) -> None:
    path = record(Path("runs/_events"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    assert cells.state(cell).status == "started"


def test_a_job_of_another_machine_is_found_beside_its_checkpoints(cell: Cell) -> None:
    path = record(Path("elsewhere"))
    Path("out/s.seed-1").mkdir(parents=True)
    path.rename("out/s.seed-1/events.jsonl")
    assert cells.state(cell).status == "complete"


@pytest.mark.parametrize("newer", ["runs/_events/s.seed-1.jsonl", "out/s.seed-1/events.jsonl"])
def test_of_two_copies_the_one_with_later_events_counts(cell: Cell, newer: str) -> None:
    whole = record(Path("elsewhere")).read_bytes()
    older = b"".join(whole.splitlines(keepends=True)[:-1])
    for copy in ("runs/_events/s.seed-1.jsonl", "out/s.seed-1/events.jsonl"):
        Path(copy).parent.mkdir(parents=True)
        Path(copy).write_bytes(whole if copy == newer else older)
    assert cells.state(cell).status == "complete"


def test_a_job_with_other_settings_is_not_taken_for_the_cell(cell: Cell) -> None:
    record(Path("runs/_events"), learning_rate=0.5)
    found = cells.state(cell)
    assert found.status == "changed"
    assert "learning_rate was 0.5, is now 5e-05" in found.reason


def test_a_cell_is_held_by_a_live_job_on_this_machine_or_another(cell: Cell) -> None:
    assert not cells.is_held(cell)
    with host.job_lock(cell.name, cell.config.checkpoints_dir):
        assert cells.is_held(cell)
    assert not cells.is_held(cell)
    store = CheckpointStore("out/s.seed-1")
    Path("out/s.seed-1").mkdir(parents=True)
    other = {"host": "other", "process": 1, "place": "other", "token": "t", "time": time.time(), "runs": ""}
    store.write_json(lease.FILE, other)
    assert cells.is_held(cell)
    store.write_json(lease.FILE, other | {"time": time.time() - 2 * lease.DURATION})
    assert not cells.is_held(cell)


def test_the_lock_and_the_lease_that_a_killed_job_of_this_machine_left_hold_nothing(cell: Cell) -> None:
    path = host._lock_path(cell.name)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    path.write_text(str(child))
    Path("out/s.seed-1").mkdir(parents=True)
    mine = {"host": "h", "process": child, "place": lease._lock_scope(), "token": "t", "time": time.time(), "runs": ""}
    (Path("out/s.seed-1") / lease.FILE).write_text(json.dumps(mine))
    assert not cells.is_held(cell)
    path.unlink()
