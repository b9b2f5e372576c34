import json
import time
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.checkpoint import Checkpoints
from scaling_fl.plan import Event
from scaling_fl.tracking import events
from scaling_fl.tracking import replay as replay_module
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.file_record import FileRecord
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.replay import Mirror, Target
from scaling_fl.tracking.tracker import Tracker
from tests.tracking import builders


def started(tmp_path: Path, targets: list[Target], say: Any = pytest.fail, **plan: Any) -> Tracker:
    (tmp_path / "base").mkdir(exist_ok=True)
    (tmp_path / "base" / "m.py").write_text("print()\n")
    tracker = Tracker(EventLog(tmp_path / "news.jsonl"), builders.plan(**plan), targets, say)
    experiment = {"name": "scaling_fl", "base_dir": str(tmp_path / "base"), "sources": [("m.py", "md5")]}
    id_ = tracker.started_event(
        experiment, "train", {"hostname": "h"}, None, {}, {"comment": "c", "odd": Path("x")}, None
    )
    assert id_ == "news"
    return tracker


def test_what_sacred_and_the_workers_tell_is_in_the_file_and_in_all_records(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    targets: list[Target] = [FileRecord(tmp_path / "runs"), FileRecord(tmp_path / "more")]
    tracker = started(tmp_path, [*targets, Mirror(Checkpoints(str(tmp_path / "c")))])
    tracker.event({"event": "round", "round": 3, "metrics": {"train.loss": 0.5, "validation.loss": "nan"}})
    tracker.output("site 1 (cpu) | hello")
    tracker.event({"event": "progress", "worker": 0, "round": 3, "done": 1})
    tracker.event({"event": "checkpoint", "round": 3, "path": "c/round-000003.safetensors", "seconds": 0.25})
    tracker.restarted("why")
    tracker.event({"event": "model", "path": "c/model"})
    tracker.completed_event(None, None)
    tracker.output("too late, and no error")

    lines, _ = events.read(tmp_path / "news.jsonl")
    assert [line["event"] for line in lines] == [
        "created", "source", "started", "shards", "round", "round", "output", "checkpoint", "restarted", "model", "completed",
    ], "progress is not kept"  # fmt: skip
    assert (lines[2]["start"]["after_round"], lines[2]["config"]["job_name"]) == (2, "news")
    assert lines[2]["sacred"]["meta"] == {"comment": "c", "odd": "x"}
    assert [(row["examples"], row["label_entropy_bits"]) for row in lines[3]["shards"]] == [(5, 1.0), (4, 0.5)]
    assert (tmp_path / "c" / "events.jsonl").read_bytes() == (tmp_path / "news.jsonl").read_bytes()
    for folder in ("runs", "more"):
        info = json.loads((tmp_path / folder / "1" / "info.json").read_text())
        assert info["files"] == {"checkpoint": "c/round-000003.safetensors", "model": "c/model"}
        assert info["starts"][0]["restarts"][0]["reason"] == "why"
    assert tracker.places() == {
        "events": str(tmp_path / "news.jsonl"),
        "run record": f"{tmp_path / 'runs' / '1'}, {tmp_path / 'more' / '1'}",
    }

    again = started(tmp_path, [FileRecord(tmp_path / "runs")])
    again.failed_event(None, ["the trace"])
    lines, _ = events.read(tmp_path / "news.jsonl")
    assert sum(line["event"] == "source" for line in lines) == 1, "the program's file hasn't changed"
    assert lines[-1]["trace"] == ["the trace"]
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "FAILED"


def test_a_round_that_the_killed_launcher_did_not_hear_of_is_told_by_its_checkpoint(tmp_path: Path) -> None:
    for _ in range(2):
        tracker = started(tmp_path, [], round_=5, metrics={"train.loss": 0.5})
        tracker.interrupted_event(None, "INTERRUPTED")
    told = [event for event in events.read(tmp_path / "news.jsonl")[0] if event["event"] == "round"]
    assert [(event["round"], event["metrics"]) for event in told] == [(5, {"train.loss": 0.5})], "once"


class Unreachable:
    name, title = "MongoDB at h", "MongoDB"

    def __init__(self) -> None:
        self.reachable, self.attempts = False, 0

    def open(self, job_id: str) -> None:
        self.attempts += 1
        if not self.reachable:
            raise ConnectionError("refused")

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        if not self.reachable:
            raise ConnectionError("refused")

    def place(self) -> str:
        return ""

    def explain(self, error: Exception) -> str:
        return f"it can't be reached ({error})"


def test_a_target_that_is_away_is_told_of_once_and_once_more_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "_BEAT", 0.05)
    monkeypatch.setattr(replay_module, "_PAUSE", 0.05)
    said: list[str] = []
    target = Unreachable()
    tracker = started(tmp_path, [target], said.append)
    replay = tracker.replays[0]

    def progress() -> None:
        tracker.event({"event": "progress", "worker": 0, "round": 1, "done": 1})

    def until(troubled: bool) -> None:
        deadline = time.monotonic() + 10
        while (replay.trouble is not None) != troubled and time.monotonic() < deadline:
            time.sleep(0.01)
        progress()
        progress()

    until(troubled=True)
    assert said == [
        "note: MongoDB at h: it can't be reached (refused); training goes on, and what is missing there follows"
    ]
    target.reachable = True
    until(troubled=False)
    assert said[1:] == ["note: MongoDB at h is up to date again"]
    target.reachable = False
    tracker.interrupted_event(None, "INTERRUPTED")
    assert said[2:] == ["MongoDB at h: it can't be reached (refused); `sync with job_name=news` brings it up to date"]
