import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymongo
import pytest

from scaling_fl import tracking
from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.plan import Plan
from scaling_fl.tracking import EventLog, Tracker, mongo_address


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        ("cluster0.example", "mongodb+srv://"),
        ("db:27017", "mongodb://"),
        ("a:1,b:2", "mongodb://"),
        ("a,b", "mongodb://"),
    ],
)
def test_the_host_decides_how_mongodb_is_reached(host: str, scheme: str) -> None:
    found = mongo_address({"SACRED_HOST": host, "SACRED_DATABASE": "lab", "SACRED_USER": "", "SACRED_PASSWORD": ""})
    assert found is not None
    assert found.options["url"].startswith(f"{scheme}{host}/")
    assert (found.options["db_name"], found.shown) == ("lab", host)


def test_credentials_are_escaped_so_that_any_password_works() -> None:
    variables = {
        "SACRED_HOST": "h:1",
        "SACRED_DATABASE": "d",
        "SACRED_USER": "me@lab",
        "SACRED_PASSWORD": "p:/?#[]@ %$ü",
    }
    found = mongo_address(variables)
    assert found is not None
    parsed = pymongo.uri_parser.parse_uri(found.options["url"])
    assert (parsed["username"], parsed["password"]) == ("me@lab", "p:/?#[]@ %$ü")
    assert parsed["nodelist"] == [("h", 1)]


def test_no_variable_is_no_mongodb_and_some_are_too_few() -> None:
    assert mongo_address({}) is None
    assert mongo_address(dict.fromkeys(tracking.MONGO_VARIABLES, "")) is None
    with pytest.raises(UserError, match="SACRED_HOST is not set"):
        mongo_address({"SACRED_DATABASE": "d"})
    with pytest.raises(UserError, match="SACRED_DATABASE is not set"):
        mongo_address({"SACRED_HOST": "h"})
    with pytest.raises(UserError, match="SACRED_PASSWORD is not set"):
        mongo_address({"SACRED_HOST": "h", "SACRED_DATABASE": "d", "SACRED_USER": "u"})


def test_a_server_that_does_not_answer_costs_seconds_and_the_password_is_not_shown(tmp_path: Path) -> None:
    variables = {
        "SACRED_HOST": "127.0.0.1:1", "SACRED_DATABASE": "d", "SACRED_USER": "u", "SACRED_PASSWORD": "hunter2",
    }  # fmt: skip
    warnings: list[str] = []
    began = time.monotonic()
    address = mongo_address(variables)
    assert address is not None
    observers = tracking.observers([tmp_path], [address], warnings.append)
    assert time.monotonic() - began < 15
    assert [type(observer).__name__ for observer in observers] == ["FileRecord"]
    assert len(warnings) == 1
    assert "MongoDB at 127.0.0.1:1 can't be used (ServerSelectionTimeoutError)" in warnings[0]
    assert "hunter2" not in warnings[0]


@pytest.mark.parametrize("host", ["no-such-cluster.invalid", "h:port", "h:1:2"])
def test_an_address_that_leads_nowhere_costs_a_warning(tmp_path: Path, host: str) -> None:
    address = mongo_address({"SACRED_HOST": host, "SACRED_DATABASE": "d"})
    assert address is not None
    warnings: list[str] = []
    assert len(tracking.observers([tmp_path], [address], warnings.append)) == 1
    assert warnings[0].startswith(f"MongoDB at {host} can't be used (")


def test_a_flag_that_is_no_address_is_refused() -> None:
    with pytest.raises(UserError, match=r"-m a:b:c: expected HOST:PORT:DATABASE"):
        tracking.typed_address("a:b:c")


def test_mongodb_joins_the_file_record_where_it_answers(tmp_path: Path, mongo: str) -> None:
    variables = {"SACRED_HOST": mongo, "SACRED_DATABASE": "lab"}
    from_environment, typed = mongo_address(variables), tracking.typed_address(f"{mongo}:other")
    assert from_environment is not None
    observers = tracking.observers([tmp_path], [from_environment, typed], pytest.fail)
    assert [type(observer).__name__ for observer in observers] == ["FileRecord", "MongoObserver", "MongoObserver"]
    assert [observer.runs.database.name for observer in observers[1:]] == ["lab", "other"]


def test_the_event_file_is_only_ever_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "_events" / "news.jsonl"
    for event in ("started", "completed"):
        log = EventLog(path)
        log.append(event, run_id="1")
        log.close()
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["started", "completed"]


class FakeRun:
    """What a Tracker uses of Sacred's run."""

    def __init__(self) -> None:
        self.info: dict[str, Any] = {}
        self._id = "7"
        self.scalars: list[tuple[str, float, int]] = []
        self.observers: list[Any] = [SimpleNamespace()]
        self.beats = 0

    def log_scalar(self, name: str, value: float, step: int) -> None:
        assert type(value) is float
        self.scalars.append((name, value, step))

    def _emit_heartbeat(self) -> None:
        self.beats += 1


def plan(tmp_path: Path) -> Plan:
    return Plan(
        config=Config(site_ids=(0, 0), job_name="j", checkpoints_dir=str(tmp_path / "c")),
        folder="/none", round=2, finished=False, threads=1, devices=("cpu", "cpu"), architecture="Bert", num_parameters=9,
        new_parameters=("head",), label_names=("a", "b"), shard_sizes=(5, 4), shard_entropies=(1.0, 0.5), num_train=9,
        num_test=3, num_cut=0, data_digest="d" * 64, pad_token_id=0, environment={"torch": "2"}, notes=(),
    )  # fmt: skip


def test_every_event_goes_to_the_file_to_sacred_and_beside_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    log, run = EventLog(tmp_path / "j.jsonl"), FakeRun()
    tracker = Tracker(run, log, plan(tmp_path), pytest.fail)  # type: ignore[arg-type]
    tracker.event({"event": "round", "round": 3, "metrics": {"train.loss": 0.5, "validation.loss": "nan"}})
    tracker.event({"event": "output", "source": "site 1 (cpu)", "text": "hello"})
    tracker.event({"event": "progress", "worker": 0, "round": 3, "done": 1})
    tracker.event({"event": "checkpoint", "round": 3, "path": "c/round-000003.safetensors", "seconds": 0.25})
    tracker.event({"event": "model", "path": "c/model"})
    tracker.end("completed")
    log.close()

    lines = [json.loads(line) for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    kinds = ["started", "shards", "round", "output", "checkpoint", "model", "completed"]
    assert [line["event"] for line in lines] == kinds, "progress is not kept"
    assert (lines[0]["run_id"], lines[0]["after_round"], lines[0]["config"]["job_name"]) == ("7", 2, "j")
    assert [(row["examples"], row["label_entropy_bits"]) for row in lines[1]["shards"]] == [(5, 1.0), (4, 0.5)]
    assert (tmp_path / "c" / "events.jsonl").read_text() == (tmp_path / "j.jsonl").read_text()
    assert [s[:1] + s[2:] for s in run.scalars] == [
        ("train.loss", 3),
        ("validation.loss", 3),
        ("seconds.checkpoint", 3),
    ]
    assert run.scalars[1][1] != run.scalars[1][1], "text becomes NaN again"
    assert run.info["files"] == {"checkpoint": "c/round-000003.safetensors", "model": "c/model"}
    assert run.info["shards"] == lines[1]["shards"]
    assert run.beats == 0, "Sacred beats by itself when a run completes"
    assert ("model", "c/model") in tracker.written()


def test_a_place_that_takes_no_events_is_no_reason_to_end_a_job(tmp_path: Path) -> None:
    log, run, warnings = EventLog(tmp_path / "j.jsonl"), FakeRun(), list[str]()
    tracker = Tracker(run, log, plan(tmp_path), warnings.append)  # type: ignore[arg-type]
    tracker.end("failed", "why")
    log.close()
    assert len(warnings) == 1
    assert "the events could not be copied beside the checkpoints: FileNotFoundError" in warnings[0]
    assert run.beats == 1, "what was captured since the last beat is kept"


def test_an_unobserved_run_writes_no_events(tmp_path: Path) -> None:
    tracker = Tracker(FakeRun(), None, plan(tmp_path), pytest.fail)  # type: ignore[arg-type]
    tracker.event({"event": "checkpoint", "round": 3, "path": "p", "seconds": 0.25})
    tracker.end("completed")
    assert list(tmp_path.iterdir()) == []
