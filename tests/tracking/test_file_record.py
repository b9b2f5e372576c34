import json
import os
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.tracking import events, file_record
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.file_record import FileRecord, find
from scaling_fl.tracking.replay import Replay
from tests.tracking import builders


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_replay_in_steps_equals_a_replay_at_once(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    in_steps = Replay(log.path, FileRecord(tmp_path / "steps"))
    in_steps.step()
    log.append("output", text="more")
    in_steps.step()
    builders.round_(log, 2, 0.125)  # again
    builders.round_(log, 3, 0.0625)
    log.append("completed")
    log.close()
    in_steps.step()
    at_once = Replay(log.path, FileRecord(tmp_path / "once"))
    at_once.step()
    assert in_steps.trouble is at_once.trouble is None
    files = sorted(path.relative_to(tmp_path / "once") for path in (tmp_path / "once").rglob("*") if path.is_file())
    assert [str(file) for file in files] == [
        "1/config.json", "1/cout.txt", "1/info.json", "1/metrics.csv", "1/metrics.json", "1/run.json", "1/shards.csv",
        next(str(file) for file in files if "_sources" in str(file)),
    ]  # fmt: skip
    for file in files:
        assert (tmp_path / "steps" / file).read_bytes() == (tmp_path / "once" / file).read_bytes(), file
    run = read(tmp_path / "once" / "1" / "run.json")
    assert (run["status"], run["command"], run["artifacts"]) == ("COMPLETED", "train", ["shards.csv", "metrics.csv"])
    ((name, stored),) = run["experiment"]["sources"]
    assert (name, (tmp_path / "once" / stored).read_text()) == ("m.py", "print()\n")
    metrics = read(tmp_path / "once" / "1" / "metrics.json")
    assert metrics["train.loss"]["values"] == [0.5, 0.125, 0.0625]
    assert (tmp_path / "once" / "1" / "cout.txt").read_text() == "hello\nmore\n"


def test_a_record_that_cannot_be_written_takes_only_one_number(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()
    record = FileRecord(tmp_path / "runs")
    replay = Replay(log.path, record)
    record._write = None  # type: ignore[method-assign,assignment]
    for _ in range(3):
        replay.step()
        assert replay.trouble is not None
    del record._write
    replay.step()
    assert replay.trouble is None
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["1", "_sources"]


def test_a_record_whose_first_writing_breaks_off_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = builders.job(tmp_path)
    log.close()

    def only_info(path: Path, content: bytes) -> None:
        if path.name != "info.json":
            raise OSError("no space")
        path.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(file_record, "_replace", only_info)
        broken = Replay(log.path, FileRecord(tmp_path / "runs"))
        broken.step()
        assert broken.trouble is not None
    Replay(log.path, FileRecord(tmp_path / "runs")).step()  # in a new process
    assert [path.name for path in (tmp_path / "runs").glob("[0-9]*")] == ["1"]


def test_each_job_keeps_its_own_number(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / "4").mkdir(parents=True)  # not written by this program
    (runs / "4" / "info.json").write_text("[1]")
    (runs / "7 copies").mkdir()
    (runs / "_sources").mkdir()
    for name in ("a", "b"):
        log = builders.job(tmp_path, name)
        log.close()
        Replay(log.path, FileRecord(runs)).step()
    again = EventLog(tmp_path / "a.jsonl")
    builders.start(again, after_round=2)
    again.close()
    record = FileRecord(runs)
    Replay(again.path, record).step()
    assert record.location() == str(runs / "5")
    assert [path.name for path in sorted(runs.iterdir())] == ["4", "5", "6", "7 copies", "_sources"]
    ids = [events.job_id(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
    assert [find(runs, str(id_)) for id_ in ids] == [runs / "5", runs / "6"]
    assert len(read(runs / "5" / "info.json")["starts"]) == 2
    assert (runs / "5" / "cout.txt").read_text() == "hello\n", "not twice"


def test_a_number_that_another_job_takes_at_the_same_time_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def slower(path: Path, *arguments: Any, **options: Any) -> None:
        if path.name == "1":
            os.makedirs(path, exist_ok=True)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", slower)
    record = FileRecord(tmp_path / "runs")
    record.open("this job")
    assert record.location() == str(tmp_path / "runs" / "2")


def test_a_file_that_cannot_be_written_to_its_end_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, write = builders.job(tmp_path), Path.write_bytes
    replay = Replay(log.path, FileRecord(tmp_path / "runs"))
    replay.step()
    before = read(tmp_path / "runs" / "1" / "run.json")

    def half(path: Path, content: bytes) -> None:
        write(path, content[: len(content) // 2])
        raise OSError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        builders.round_(log, 3, 0.125)
        replay.step()
    assert replay.trouble is not None
    assert read(tmp_path / "runs" / "1" / "run.json") == before
    log.close()
