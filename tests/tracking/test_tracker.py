import dataclasses
import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.federated import attackers
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.tracking import events
from scaling_fl.tracking import replay as replay_module
from scaling_fl.tracking import tracker as tracker_module
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.file_record import FileRecord
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.replay import Mirror, Replay, Target
from scaling_fl.tracking.tracker import Tracker
from tests.tracking import builders

REPOSITORY: dict[str, Any] = {"url": "u", "commit": "c", "dirty": False}


def started(
    tmp_path: Path, targets: list[Target], say: Any = pytest.fail, of: Plan | None = None, source: str = "print()\n",
    repositories: tuple[dict[str, Any], ...] = (REPOSITORY, REPOSITORY), **plan: Any,
) -> Tracker:  # fmt: skip
    (tmp_path / "base").mkdir(parents=True, exist_ok=True)
    (tmp_path / "base" / "m.py").write_text(source)
    tracker = Tracker(EventLog(tmp_path / "news.jsonl"), of or builders.plan(**plan), targets, say)
    experiment = {
        "name": "scaling_fl", "base_dir": str(tmp_path / "base"), "sources": [("m.py", "md5")], "dependencies": [],
        "repositories": list(repositories),
    }  # fmt: skip
    tracker.started_event(experiment, "train", {"hostname": "h"}, None, {}, {"comment": "c", "path": Path("x")}, None)
    return tracker


def test_the_table_of_shards_says_who_attacks_and_with_what(tmp_path: Path) -> None:
    keys = {"attack": "label_flip", "attackers": 1}
    bad = attackers.drawn(builders.plan(keys=keys).config, 2)
    started(tmp_path, [], keys=keys)
    (table,) = [line["shards"] for line in events.read(tmp_path / "news.jsonl")[0] if line["event"] == "shards"]
    assert [row.get("attack") for row in table] == ["label_flip" if site in bad else None for site in (0, 1)]
    assert len(bad) == 1


def test_events_of_sacred_and_workers_are_in_the_event_file_and_in_all_records(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    targets: list[Target] = [FileRecord(tmp_path / "runs"), FileRecord(tmp_path / "more")]
    tracker = started(tmp_path, [*targets, Mirror(CheckpointStore(str(tmp_path / "c")))])
    for confusion in ({"validation": [[2, 0], [1, 0]]}, {"validation": [[1, 1], [1, 0]]}, {}):  # no evaluation at last
        tracker.event(
            {
                "event": "round",
                "round": 3,
                "metrics": {"train.loss": 0.5, "validation.loss": "nan"},
                "confusion": confusion,
            }
        )
    tracker.output("site 1 (cpu) | hello")
    tracker.event(builders.progress(0, 3, 1))
    tracker.event({"event": "checkpoint", "round": 3, "path": "c/round-000003.safetensors", "seconds": 0.25})
    tracker.restarted("why")
    tracker.event({"event": "model", "path": "c/model"})
    tracker.completed_event(None, None)
    tracker.output("too late, but not an error")

    lines, _ = events.read(tmp_path / "news.jsonl")
    assert [line["event"] for line in lines] == [
        "created", "source", "started", "shards", "round", "round", "round", "output", "checkpoint", "restarted", "model",
        "confusion", "completed",
    ], "progress is not recorded"  # fmt: skip
    assert (lines[2]["start"]["after_round"], lines[2]["config"]["job_name"]) == (2, "news")
    assert lines[-2]["sets"] == {"validation": [[1, 1], [1, 0]]}, "the last evaluation"
    experiment = lines[2]["sacred"]["experiment"]
    assert experiment["repositories"] == [REPOSITORY]
    assert {f"{name}=={importlib.metadata.version(name)}" for name in ("torch", "numpy")} <= set(
        experiment["dependencies"]
    )
    assert lines[2]["info"]["resolved"] == {
        "num_sites": 2, "sites_per_round": 2, "partition": "iid", "threads_per_site": 1, "precision": None,
        "devices": ["cpu"], "processes": 2,
    }  # fmt: skip
    assert lines[2]["sacred"]["meta"] == {"comment": "c", "path": "x"}
    assert [(row["examples"], row["label_entropy_bits"]) for row in lines[3]["shards"]] == [(5, 1.0), (4, 0.5)]
    assert (tmp_path / "c" / "events.jsonl").read_bytes() == (tmp_path / "news.jsonl").read_bytes()
    for folder in ("runs", "more"):
        info = json.loads((tmp_path / folder / "1" / "info.json").read_text())
        assert info["files"] == {"checkpoint": "c/round-000003.safetensors", "model": "c/model"}
        assert info["starts"][0]["restarts"][0]["reason"] == "why"
    assert tracker.locations() == {
        "events": str(tmp_path / "news.jsonl"),
        "run record": f"{tmp_path / 'runs' / '1'}, {tmp_path / 'more' / '1'}",
    }

    again = started(tmp_path, [FileRecord(tmp_path / "runs")])
    again.failed_event(None, ["the trace"])
    lines, _ = events.read(tmp_path / "news.jsonl")
    assert sum(line["event"] == "source" for line in lines) == 1, "the source file hasn't changed"
    assert lines[-1]["trace"] == ["the trace"]
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "FAILED"


def test_rounds_missing_from_the_file_are_restored_from_the_checkpoint(tmp_path: Path) -> None:
    def rounds() -> list[tuple[int, float]]:
        found = events.read(tmp_path / "news.jsonl")[0]
        return [(event["round"], event["metrics"]["train.loss"]) for event in found if event["event"] == "round"]

    history = {str(round_): {"train.loss": round_ / 10} for round_ in range(11)}
    for _ in range(2):
        tracker = started(tmp_path, [FileRecord(tmp_path / "runs")], round_=10, history=history)
        tracker.interrupted_event(None, "INTERRUPTED")
    assert rounds() == [(round_, round_ / 10) for round_ in range(11)], "no round twice"
    # Rounds 5 to 8 were repeated after a checkpoint of round 4, on a machine that was lost before it recorded them.
    tracker = started(tmp_path, [FileRecord(tmp_path / "runs")], round_=4, history=dict(list(history.items())[:5]))
    tracker.interrupted_event(None, "INTERRUPTED")
    again = {name: {"train.loss": 2.0} if 4 < int(name) <= 8 else value for name, value in history.items()}
    tracker = started(tmp_path, [FileRecord(tmp_path / "runs")], round_=8, history=dict(list(again.items())[:9]))
    tracker.interrupted_event(None, "INTERRUPTED")
    metrics = json.loads((tmp_path / "runs" / "1" / "metrics.json").read_text())
    assert metrics["train.loss"]["steps"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert metrics["train.loss"]["values"] == [0.0, 0.1, 0.2, 0.3, 0.4, 2.0, 2.0, 2.0, 2.0]


class UnreachableTarget:
    name, title, throttled = "MongoDB at h", "MongoDB", True

    def __init__(self) -> None:
        self.reachable, self.attempts = False, 0

    def open(self, job_id: str) -> float:
        self.attempts += 1
        if not self.reachable:
            raise ConnectionError("refused")
        return 0.0

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        if not self.reachable:
            raise ConnectionError("refused")

    def location(self) -> str:
        return ""

    def explain(self, error: Exception) -> str:
        return f"it can't be reached ({error})"


def test_an_outage_of_a_target_is_reported_once_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "_HEARTBEAT", 0.05)
    monkeypatch.setattr(replay_module, "_MIN_PAUSE", 0.05)
    messages: list[str] = []
    target = UnreachableTarget()
    tracker = started(tmp_path, [target], messages.append)
    replay = tracker.replays[0]

    def progress() -> None:
        tracker.event(builders.progress(0, 1, 1))

    def wait_until(troubled: bool) -> None:
        deadline = time.monotonic() + 120
        while (replay.trouble is not None) != troubled and time.monotonic() < deadline:
            time.sleep(0.01)
        progress()
        progress()

    wait_until(troubled=True)
    assert messages == [
        "note: MongoDB at h: it can't be reached (refused); training continues, and the missing entries will be written later"
    ]
    target.reachable = True
    wait_until(troubled=False)
    assert messages[1:] == ["note: MongoDB at h is up to date again"]
    target.reachable = False
    tracker.interrupted_event(None, "INTERRUPTED")
    assert messages[2:] == [
        "MongoDB at h: it can't be reached (refused); `sync with job_name=news` brings it up to date"
    ]


def test_predictions_that_cannot_be_recorded_are_a_note(tmp_path: Path) -> None:
    said: list[str] = []
    tracker = started(tmp_path, [], said.append)
    gone = {"event": "predictions", "round": 3, "predictions": None, "folder": str(tmp_path / "gone")}
    tracker.event(gone)
    tracker.completed_event(None, None)
    assert len(said) == 1
    assert said[0].startswith("note: the predictions can't be recorded (FileNotFoundError: ")
    assert "predictions" not in [line["event"] for line in events.read(tmp_path / "news.jsonl")[0]]


def test_sites_are_recorded_with_their_labels_and_a_device_if_it_is_theirs_alone(tmp_path: Path) -> None:
    def lines(of: Plan) -> list[dict[str, Any]]:
        started(tmp_path / str(of.num_sites), [], of=of)
        return events.read(tmp_path / str(of.num_sites) / "news.jsonl")[0]

    each = dataclasses.replace(builders.plan(), devices=("cuda:0", "cpu"), label_counts=((2, 3), (4, 0)))
    assert lines(each)[-1]["shards"] == [
        {"site": 0, "examples": 5, "label_entropy_bits": 1.0, "device": "cuda:0", "label_counts": [2, 3]},
        {"site": 1, "examples": 4, "label_entropy_bits": 0.5, "device": "cpu", "label_counts": [4, 0]},
    ]
    plan = builders.plan(keys={"sites_per_round": 1})
    shared = dataclasses.replace(plan, shard_sizes=(5, 4, 7), shard_entropies=(1.0, 0.5, 0.25))
    *_, start, shards = lines(shared)
    assert not any("device" in row for row in shards["shards"])
    assert start["info"]["num_parameters"] == 9
    resolved = start["info"]["resolved"]
    assert [resolved[name] for name in ("num_sites", "sites_per_round", "processes")] == [3, 1, 2]


def test_a_source_file_that_has_changed_is_recorded_again(tmp_path: Path) -> None:
    for source in ("print(1)\n", "print(1)\n", "print(2)\n"):
        started(tmp_path, [], source=source).interrupted_event(None, "INTERRUPTED")
    sources = [line["text"] for line in events.read(tmp_path / "news.jsonl")[0] if line["event"] == "source"]
    assert sources == ["print(1)\n", "print(2)\n"]


@pytest.mark.parametrize(
    ("commit", "repositories"),
    [
        ("c0ffee", [{"url": "", "commit": "c0ffee", "dirty": False}]),
        ("c0ffee-dirty", [{"url": "", "commit": "c0ffee", "dirty": True}]),
        ("", []),
    ],
)
def test_without_a_repository_the_commit_is_the_one_that_the_image_was_built_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str, repositories: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("SCALING_FL_COMMIT", commit)
    started(tmp_path, [], repositories=())
    (start,) = (line for line in events.read(tmp_path / "news.jsonl")[0] if line["event"] == "started")
    assert start["sacred"]["experiment"]["repositories"] == repositories


def test_a_full_disk_at_the_end_of_a_job_is_no_further_error(tmp_path: Path) -> None:
    tracker = started(tmp_path, [FileRecord(tmp_path / "runs")])
    tracker._log._file = open("/dev/full", "ab")  # noqa: SIM115 (the tracker closes it)
    tracker.failed_event(None, ["no space left"])
    assert not tracker.replays[0]._thread.is_alive()


def test_the_end_of_a_job_waits_for_all_records_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cloud gives few seconds to a machine that it takes back."""
    now, waited = [100.0], list[float]()

    def wait(replay: Replay, timeout: float) -> bool:
        waited.append(timeout)
        now[0] += 5.0
        return True

    tracker = started(tmp_path, [FileRecord(tmp_path / name) for name in "abc"])
    monkeypatch.setattr(Replay, "wait", wait)
    monkeypatch.setattr(tracker_module.time, "monotonic", lambda: now[0])
    tracker.interrupted_event(None, "INTERRUPTED")
    assert waited == [8.0, 3.0, 0.0]
    for replay in tracker.replays:
        replay._thread.join(120)
