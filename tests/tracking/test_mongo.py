"""Entries in MongoDB, replayed from event files."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gridfs
import pymongo
import pymongo.monitoring
import pytest
from bson import ObjectId

from scaling_fl.errors import UserError
from scaling_fl.tracking import events
from scaling_fl.tracking import mongo as mongo_module
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import OUTPUT_END, Record
from scaling_fl.tracking.replay import Replay
from tests.tracking import builders


class Commands(pymongo.monitoring.CommandListener):
    """The names of the commands that were sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: pymongo.monitoring.CommandSucceededEvent) -> None: ...

    def failed(self, event: pymongo.monitoring.CommandFailedEvent) -> None: ...


def database(server: str) -> Any:
    return pymongo.MongoClient(f"mongodb://{server}", serverSelectionTimeoutMS=5000)["lab"]


def test_an_entry_written_in_steps_equals_one_written_at_once(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    steps, once = (MongoEntry(Address(f"mongodb://{mongo}", name)) for name in ("lab", "once"))
    in_steps = Replay(log.path, steps)
    in_steps.step()
    runs = database(mongo).runs
    assert runs.find_one()["status"] == "RUNNING"
    builders.round_(log, 3, 0.1)
    in_steps.step()
    log.append("output", text="more")
    builders.round_(log, 3, 0.0625)  # again
    in_steps.step()
    builders.round_(log, 4, 0.03)
    log.append("completed")
    log.close()
    in_steps.step()
    Replay(log.path, once).step()
    assert in_steps.trouble is None

    def content(name: str) -> dict[str, Any]:
        """The entry and its metrics, with file ids replaced by file contents."""
        base = database(mongo).client[name]
        files, (entry,) = gridfs.GridFS(base), list(base.runs.find())
        for artifact in entry["artifacts"]:
            artifact["file_id"] = files.get(artifact["file_id"]).read()
        entry["experiment"]["sources"] = [[n, files.get(id_).read()] for n, id_ in entry["experiment"]["sources"]]
        metrics = {m.pop("name"): m for m in base.metrics.find()}
        ids = {str(m.pop("_id")): m for m in metrics.values()}
        assert {m.pop("id") for m in entry["info"]["metrics"]} == ids.keys(), "viewers look metrics up by these ids"
        entry["info"]["metrics"].sort(key=lambda m: m["name"])
        return {"entry": entry, "metrics": metrics}

    first, second = content("lab"), content("once")
    assert first == second
    entry = first["entry"]
    assert (entry["_id"], entry["status"], entry["captured_out"]) == (1, "COMPLETED", "hello\nmore\n")
    assert entry["config"]["job_name"] == "news"
    assert entry["experiment"]["sources"] == [["m.py", b"print()\n"]]
    assert first["metrics"].keys() == {"train.loss", "seconds.checkpoint", *(f"only.in.{n}" for n in (1, 2, 3, 4))}
    assert first["metrics"]["train.loss"]["steps"] == [1, 2, 3, 4]
    assert first["metrics"]["train.loss"]["values"] == [0.5, 0.25, 0.0625, 0.03]
    assert [artifact["name"] for artifact in entry["artifacts"]] == ["shards.csv", "metrics.csv"]
    assert entry["start_time"] < entry["stop_time"]
    assert len(list(database(mongo)["fs.files"].find())) == 3, "no artifact is stored twice"


def test_a_job_keeps_its_number_and_its_name_is_unique(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    log.close()
    Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab"))).step()
    again = EventLog(log.path)
    builders.start(again, after_round=2)
    again.close()
    resumed = MongoEntry(Address(f"mongodb://{mongo}", "lab"))
    resumed.check("news", events.job_id(log.path))
    Replay(log.path, resumed).step()
    assert resumed.location() == "run 1 in database lab"
    assert len(database(mongo).runs.find_one()["info"]["starts"]) == 2
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-1]))
    stale = Replay(old, MongoEntry(Address(f"mongodb://{mongo}", "lab")))
    stale.step()
    assert stale.describe_trouble().startswith(f"MongoDB at {mongo} has later events than {old}; bring it up to date")
    restarted = EventLog(log.path)
    builders.start(restarted, after_round=0)
    builders.round_(restarted, 1, 0.9)
    restarted.close()
    Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab"))).step()
    assert {m["name"]: m["values"] for m in database(mongo).metrics.find()} == {"train.loss": [0.9], "only.in.1": [1.5]}

    with pytest.raises(
        UserError, match=r"job_name=news: .* already has a job of this name, in run 1 \(RUNNING, h\); to resume it, use"
    ):
        resumed.check("news", None)
    with pytest.raises(UserError, match="in run 1"):
        resumed.check("news", "another id")
    resumed.check("old", None)
    database(mongo).runs.insert_one({"_id": 7, "config": {"job_name": "news"}, "command": "train", "status": "FAILED"})
    with pytest.raises(UserError, match=r"in run 1 \(RUNNING, h\), 7 \(FAILED, \?\); .*remove all but one"):
        resumed.check("news", events.job_id(log.path))
    database(mongo).runs.insert_one({"_id": ObjectId(), "command": "train"})  # an id that is not a number
    other = builders.job(tmp_path, "other")
    other.close()
    entry = MongoEntry(Address(f"mongodb://{mongo}", "lab"))
    replay = Replay(other.path, entry)
    replay.step()
    assert replay.trouble is None
    assert entry.location() == "run 8 in database lab"


def test_what_one_job_stores_anew_stays_as_it_was_in_the_others(tmp_path: Path, mongo: str) -> None:
    base, logs = database(mongo), [builders.job(tmp_path, name) for name in ("news", "reviews")]
    replays = [Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab"))) for log in logs]
    for replay in replays:  # so far, their files are the same
        replay.step()
    builders.round_(logs[0], 3, 0.125)
    logs[0].append("source", name="m.py", text="print(2)\n")
    builders.start(logs[0], after_round=3)
    logs[0].append("completed")
    replays[0].step()
    assert [replay.trouble for replay in replays] == [None, None]

    def stored(job: str) -> tuple[dict[str, bytes], list[bytes]]:
        """Artifacts and sources."""
        files, entry = gridfs.GridFS(base), base.runs.find_one({"config.job_name": job})
        artifacts = {file["name"]: files.get(file["file_id"]).read() for file in entry["artifacts"]}
        return artifacts, [files.get(id_).read() for _, id_ in entry["experiment"]["sources"]]

    for log, source in zip(logs, (b"print(2)\n", b"print()\n"), strict=True):
        assert stored(log.path.stem) == (Record.from_events(events.read(log.path)[0]).artifacts(), [source])


def test_hundreds_of_sources_are_stored_in_a_few_operations(tmp_path: Path, mongo: str) -> None:
    log, texts = builders.job(tmp_path), {f"{n}.py": f"print({n})\n" for n in range(100)}
    texts |= {"empty.py": "", "long.py": "é" * 300_000, "same.py": "print(0)\n"}
    for name, text in texts.items():
        log.append("source", name=name, text=text)
    builders.start(log, after_round=0)
    log.append("completed")
    commands = Commands()
    pymongo.monitoring.register(commands)
    for _ in range(2):
        replay = Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab")))
        replay.step()
        assert replay.trouble is None
    assert len(commands.names) < 60
    base = database(mongo)
    files, (entry,) = gridfs.GridFS(base), list(base.runs.find())
    stored = {name: files.get(id_).read().decode() for name, id_ in entry["experiment"]["sources"]}
    assert stored == texts | {"m.py": "print()\n"}
    assert sum(file["filename"].endswith(".py") for file in base["fs.files"].find()) == len(stored), "none twice"


def test_50_mb_of_output_and_thousands_of_points_fit(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    text = "x" * (2**20 - 1)
    for _ in range(50):
        log.append("output", text=text)
    for number in range(3, 5000):
        builders.round_(log, number, 0.5) if number == 3 else log.append(
            "round", round=number, metrics={"train.loss": 0.5}
        )
    log.append("completed")
    log.close()
    replay = Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab")))
    for _ in range(10):  # on a busy machine, the server may not answer in time
        replay.step()
        if replay.trouble is None:
            break
    assert replay.trouble is None, replay.describe_trouble()
    entry = database(mongo).runs.find_one()
    assert 2 * OUTPUT_END <= len(entry["captured_out"]) < 2 * OUTPUT_END + 200
    whole = next(artifact for artifact in entry["artifacts"] if artifact["name"] == "cout.txt")
    chunks, file = database(mongo)["fs.chunks"], database(mongo)["fs.files"].find_one(whole["file_id"])
    numbers = range(-(-file["length"] // file["chunkSize"]))
    # One by one, because the test server sends a whole result in one message.
    content = b"".join(chunks.find_one({"files_id": file["_id"], "n": n})["data"] for n in numbers)
    assert content == b"hello\n" + 50 * (text.encode() + b"\n")
    assert database(mongo).metrics.find_one({"name": "train.loss"})["steps"] == list(range(1, 5000))


def test_a_number_that_another_job_takes_at_the_same_time_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, entry = Mock(), MongoEntry(Address("mongodb://h", "lab"))
    runs.find_one.side_effect = [None, {"_id": 4}, {"_id": 5}]  # the job's entry; the newest one, twice
    runs.insert_one.side_effect = [pymongo.errors.DuplicateKeyError("5"), None]
    monkeypatch.setattr(entry, "_database", lambda: {"runs": runs})
    monkeypatch.setattr(mongo_module.time, "sleep", lambda seconds: None)
    assert entry.open("this job") == 0.0
    assert runs.insert_one.call_args.args[0] == {"_id": 6, "info": {"job_id": "this job"}, "status": "RUNNING"}
    assert entry.location() == "run 6 in database lab"
