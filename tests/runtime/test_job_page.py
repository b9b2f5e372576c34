"""The page and the predictions at the end of a job."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import gridfs
import pyarrow.parquet as pq
import pymongo
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.reporting import page
from scaling_fl.runtime.job_page import JobPage
from scaling_fl.tracking.events import read
from scaling_fl.tracking.record import Record
from tests import builders
from tests.reporting import builders as records

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def keys(folder: Path) -> list[str]:
    """Three sites of unequal size on two processes."""
    builders.write_csv(folder / "train.csv", 61)
    builders.write_csv(folder / "test.csv", 45, 1)
    return [
        "with", "site_ids=[-1,-1]", "num_sites=3", "partition=sizes", "size_law=power", "num_rounds=2", "task_name=csv",
        "train_path=train.csv", "test_path=test.csv", "text_column=body", "label_column=topic",
        f"model={builders.pretrained(folder / 'model')}", "max_seq_len=16", "batch_size=8", "threads_per_site=1",
        "job_name=news", "checkpoints_dir=out",
    ]  # fmt: skip


def test_a_finished_job_has_a_page_and_the_predictions_of_its_model(
    command: Command, tmp_path: Path, mongo: str
) -> None:
    done = command("train", *keys(tmp_path), "report=True", SACRED_HOST=mongo, SACRED_DATABASE="lab")
    assert done.returncode == 0, done.stderr
    assert "report       out/report.html" in done.stdout
    content = (tmp_path / "out" / "report.html").read_bytes()
    assert content == (tmp_path / "runs" / "1" / "report.html").read_bytes()
    assert "report.html" in json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["artifacts"]
    predictions = tmp_path / "runs" / "1" / "predictions.parquet"
    database = pymongo.MongoClient(f"mongodb://{mongo}", serverSelectionTimeoutMS=5000)["lab"]
    (entry,) = database.runs.find()
    attached = {found["name"]: gridfs.GridFS(database).get(found["file_id"]).read() for found in entry["artifacts"]}
    assert attached["report.html"] == content
    assert attached["predictions.parquet"] == predictions.read_bytes()
    rows = pq.read_table(predictions).to_pylist()
    measured = command("evaluate", "with", "job_name=news", "checkpoints_dir=out", "csv_path=measured.csv")
    assert measured.returncode == 0, measured.stderr
    with open(tmp_path / "measured.csv", newline="") as file:
        expected = {int(row["row"]): row for row in csv.DictReader(file)}
    assert len(rows) == len(expected) == 45
    for row in rows:
        same = expected[row["row"]]
        assert (row["label"], row["predicted"]) == (same["label"], same["predicted"])
        assert row["probability"] == pytest.approx(float(same["probability"]), abs=1e-5)
        assert row["text"] in (None, same["text"])
    assert sum(row["text"] is not None for row in rows) == sum(row["label"] != row["predicted"] for row in rows) > 0


def test_a_page_that_cannot_be_written_does_not_fail_the_job(command: Command, tmp_path: Path) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    done = command("train", *keys(tmp_path), "report=True")
    assert done.returncode == 0, done.stderr
    assert "note: report.html can't be made" in done.stdout
    assert (tmp_path / "runs" / "1" / "report.html").is_file()


def test_without_report_no_text_is_recorded(command: Command, tmp_path: Path) -> None:
    done = command("train", *keys(tmp_path), "report=False")
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "runs" / "1").iterdir()} | {
        p.name for p in (tmp_path / "out").iterdir()
    }
    assert not written & {"report.html", "predictions.parquet"}


def test_a_page_that_cannot_be_drawn_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(found: list[Record]) -> str:
        raise ZeroDivisionError("no data")

    monkeypatch.setattr(page, "render", fail)
    said = list[str]()
    record = Record.from_events(read(records.job(tmp_path))[0])
    drawn = JobPage(Config(job_name="news", checkpoints_dir=str(tmp_path / "out")), said.append)
    assert drawn.of(record) == {}
    assert said == [
        "note: report.html can't be made (ZeroDivisionError: no data); the job is complete, and "
        "`scripts/report.py news` tries again"
    ]
    assert drawn.of(record) == {}  # it doesn't try once for each record
    assert len(said) == 1


def test_a_record_that_is_brought_up_to_date_gets_the_page_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_bytes(b"drawn when the job ended")
    record = Record.from_events(read(records.job(tmp_path))[0])
    config = Config(job_name="news", checkpoints_dir=str(tmp_path / "out"))
    assert JobPage(config, print, reuse=True).of(record) == {"report.html": b"drawn when the job ended"}
    assert JobPage(config, print).of(record)["report.html"].startswith(b"<!DOCTYPE html>")


@pytest.mark.parametrize(("now", "recorded"), [(False, True), (True, False)])
def test_no_page_is_drawn_if_the_command_or_the_job_has_report_false(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool, recorded: bool
) -> None:
    monkeypatch.setattr(page, "render", lambda _: pytest.fail("drawn"))
    record = Record.from_events(read(records.job(tmp_path))[0])
    record.config["report"] = recorded
    drawn = JobPage(Config(job_name="news", checkpoints_dir=str(tmp_path / "out"), report=now), pytest.fail)
    assert drawn.of(record) == {}
    assert drawn.location({"run record": "runs/1"}) == ""


def test_a_page_is_named_where_it_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    record = Record.from_events(read(records.job(tmp_path))[0])
    for checkpoints, kept, expected in (
        (None, {"events": "runs/_events/news.jsonl", "run record": "runs/7, others/3"}, "runs/7/report.html"),
        (None, {"events": "runs/_events/news.jsonl", "MongoDB": "run 7 in database lab"}, ""),
        (str(tmp_path / "out"), {"run record": "runs/7"}, str(tmp_path / "out" / "report.html")),
    ):
        drawn = JobPage(Config(job_name="news", checkpoints_dir=checkpoints), pytest.fail)
        assert drawn.of(record).keys() == {"report.html"}
        assert drawn.location(kept) == expected
