import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pymongo
import pytest

from scaling_fl.errors import UserError
from scaling_fl.reporting import frames, records
from scaling_fl.tracking.file_record import FileRecord
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.replay import Replay
from tests.reporting import builders


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder like `runs`, with the event files and the numbered folders of two jobs."""
    folder = tmp_path / "runs"
    for name, rounds in (("news", 2), ("reviews", 3)):
        replay = Replay(builders.job(folder / "_events", name, rounds), FileRecord(folder))
        replay.step()
        assert replay.trouble is None
    return folder


def assert_same(one: frames.Frames, other: frames.Frames) -> None:
    for found in (one, other):
        found.runs["started"] = found.runs["started"].dt.floor("ms")  # MongoDB holds no more
    for mine, theirs in zip(one[:-1], other[:-1], strict=True):
        pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)


def copied_run(runs: Path, folder: Path) -> list[Any]:
    """The run's folder on another machine."""
    shutil.copytree(runs / "1", folder / "elsewhere")
    return [folder / "elsewhere"]


def checkpoints(runs: Path, folder: Path) -> list[Any]:
    (folder / "out").mkdir()
    shutil.copy(runs / "_events" / "news.jsonl", folder / "out" / "events.jsonl")
    return [str(folder / "out")]


@pytest.mark.parametrize(
    "place",
    [
        copied_run,
        checkpoints,
        lambda runs, folder: ["news"],
        lambda runs, folder: [runs / "1"],
        lambda runs, folder: [runs / "1", "news", *checkpoints(runs, folder)],  # once
    ],
    ids=["a copied run", "checkpoints", "a name", "a run", "several"],
)
def test_each_kind_of_record_gives_the_same_frames(
    runs: Path, tmp_path: Path, place: Callable[[Path, Path], list[Any]]
) -> None:
    sources, history = place(runs, tmp_path), runs / "_events" / "news.jsonl"
    assert_same(frames.load(*sources, runs=runs), frames.load(history))
    (one,), (other,) = (records.find(*names, runs=runs).records for names in (sources, [history]))
    assert (one.output, one.generations) == (other.output, builders.GENERATIONS)
    assert one.output.count("note: ") == 2


def test_entries_in_mongodb_give_the_same_frames(tmp_path: Path, mongo: str) -> None:
    database = Address(f"mongodb://{mongo}", "lab")
    for name in ("one", "two"):
        replay = Replay(builders.job(tmp_path, name, loss=0.25), MongoEntry(database))  # this server stores no NaN
        replay.step()
        assert replay.trouble is None, replay.describe_trouble()
    pymongo.MongoClient(f"mongodb://{mongo}")["lab"].runs.insert_one({"_id": 9, "info": {"job_id": "damaged"}})
    assert_same(frames.load(database=database), frames.load(tmp_path / "one.jsonl", tmp_path / "two.jsonl"))
    found = records.find(database=database)
    assert found.skipped == {"run 9 in database lab": "KeyError: 'config'"}
    assert [record.output.count("note: ") for record in found.records] == [2, 2]
    assert [record.generations for record in found.records] == [builders.GENERATIONS] * 2


def test_an_object_store_gives_the_same_frames(runs: Path, object_store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scaling_fl.checkpoint.store import CheckpointStore

    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    url = f"{object_store.bucket}/news"
    CheckpointStore(url).publish_file(runs / "_events" / "news.jsonl", "events.jsonl")
    assert_same(frames.load(url), frames.load("news", runs=runs))


def test_a_folder_of_runs_gives_every_job_once_and_the_most_recent_record_of_it(runs: Path) -> None:
    found = records.find(runs)
    assert [record.info["job_name"] for record in found.records] == ["news", "reviews"]
    lines = (runs / "_events" / "news.jsonl").read_bytes().splitlines(keepends=True)
    (runs / "_events" / "news.jsonl").write_bytes(b"".join(lines[:4]))  # an old copy
    (runs / "_events" / "reviews.jsonl").unlink()
    again = records.find(runs)
    assert again.skipped == {}
    assert {r.info["job_name"]: max(r.metrics["validation.accuracy"]) for r in again.records} == {
        "news": 2,
        "reviews": 3,
    }
    places = [runs / "1", runs / "_events" / "news.jsonl"]
    for sources in (places, reversed(places)):
        (newest,) = records.find(*sources).records
        assert newest.result()["round"] == 2


def test_damaged_and_foreign_records_are_named_and_left_out(runs: Path) -> None:
    (runs / "_events" / "other.jsonl").write_text('{"level": "info"}\n[1]\n')
    (runs / "_events" / "strange.jsonl").write_text('{"time": 1, "event": "started"}\n')
    for number, (name, text) in enumerate(
        [("run.json", ""), ("info.json", "[]"), ("metrics.json", '{"a": 1}'), ("config.json", None)], 3
    ):
        shutil.copytree(runs / "1", runs / str(number))
        if text is None:
            (runs / str(number) / name).unlink()
        else:
            (runs / str(number) / name).write_text(text)
    (runs / "7").mkdir()
    found = records.find(runs)
    assert len(found.records) == 2
    assert set(found.skipped) == {
        *(str(runs / "_events" / f"{name}.jsonl") for name in ("other", "strange")), *(str(runs / n) for n in "34567"),
    }  # fmt: skip
    assert found.skipped[str(runs / "_events" / "other.jsonl")] == "no run has started there"
    assert found.skipped[str(runs / "_events" / "strange.jsonl")].startswith("KeyError: ")
    assert found.skipped[str(runs / "3")].startswith("JSONDecodeError: ")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("new", r"^new: there is no such job in .*runs \(did you mean news\?\), nor such a file or folder; correct"),
        ("{empty}", r"^.*empty: expected a folder of runs, a run's folder or a job's checkpoints_dir, found neither"),
        ("/no/such/place", r"^/no/such/place: there is no such job in "),
    ],
)
def test_a_source_that_is_not_there_is_refused(runs: Path, tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        records.find(source.format(empty=tmp_path / "empty"), runs=runs)


def test_a_database_that_is_not_there_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^MongoDB at 127\.0\.0\.1:1: it can't be reached"):
        records.find(database=Address("mongodb://127.0.0.1:1", "lab"))


def test_a_record_holds_data_alone(runs: Path) -> None:
    """Nothing in a record's folder is code or a pickle."""
    assert {path.suffix for path in (runs / "1").iterdir()} <= {".json", ".csv", ".txt", ".parquet"}
    json.loads((runs / "1" / "info.json").read_text())
