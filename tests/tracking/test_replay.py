import json
import threading
import time
from pathlib import Path

import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.progress import Event
from scaling_fl.tracking import events
from scaling_fl.tracking import replay as replay_module
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.file_record import FileRecord
from scaling_fl.tracking.record import Record, utc
from scaling_fl.tracking.replay import Mirror, Replay
from tests.tracking import builders


class FlakyTarget:
    """A target that fails on demand, and counts the events that it receives."""

    name, title, throttled = "the flaky target", "flaky", True

    def __init__(self) -> None:
        self.fail_in: str | None = None
        self.opened, self.newest = 0, 0.0
        self.written: list[tuple[int, int]] = []  # events, rounds in the record

    def open(self, job_id: str) -> float:
        self.opened += 1
        if self.fail_in == "open":
            raise OSError("closed")
        return self.newest

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        if self.fail_in == "write":
            raise OSError("half written")
        self.written.append((len(events), len(record.metrics["train.loss"])))

    def location(self) -> str:
        return "here"

    def explain(self, error: Exception) -> str:
        return f"it says: {error}"


def test_only_new_events_are_written_and_all_after_a_failure(tmp_path: Path) -> None:
    log, target = builders.job(tmp_path), FlakyTarget()
    replay = Replay(log.path, target)
    replay.step()
    builders.round_(log, 3, 0.1)
    replay.step()
    total = target.written[0][0]
    assert target.written == [(total, 2), (1, 3)]
    for fault in ("write", "open"):
        target.fail_in = fault
        builders.round_(log, 4, 0.1)
        replay.step()
        assert replay.trouble is not None
    assert replay.describe_trouble() == "the flaky target: it says: closed"
    target.fail_in = None
    replay.step()
    assert replay.trouble is None
    assert target.written[-1] == (total + 3, 4), "all events: the state after the failed write is unknown"
    log.close()


def test_a_record_that_is_up_to_date_stays_so(tmp_path: Path) -> None:
    """`sync` of a job whose records lack nothing."""
    log = builders.job(tmp_path)
    log.append("completed")
    log.close()
    for _ in range(2):
        replay = Replay(log.path, FileRecord(tmp_path / "runs"))
        replay.step()
        assert replay.trouble is None
    assert sorted(path.name for path in (tmp_path / "runs").glob("[0-9]*")) == ["1"]


def test_a_record_with_later_events_is_not_overwritten(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    log.close()
    record = FileRecord(tmp_path / "runs")
    Replay(log.path, record).step()
    whole = {path.name: path.read_bytes() for path in (tmp_path / "runs" / "1").iterdir()}
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-2]))
    replay = Replay(old, FileRecord(tmp_path / "runs"))
    replay.step()
    assert replay.describe_trouble().startswith(
        f"the record in {tmp_path / 'runs'} has later events than {old}; bring it up"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "runs" / "1").iterdir()} == whole
    again = EventLog(old)  # a job may still resume from the old file: its events are later
    builders.start(again, after_round=1)
    again.close()
    replay.step()
    assert replay.trouble is None


def test_the_thread_writes_every_event_including_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_MIN_PAUSE", 0.01)
    log, target = builders.job(tmp_path), FlakyTarget()
    replay = Replay(log.path, target)
    replay.start()
    deadline = time.monotonic() + 120
    while not target.written and time.monotonic() < deadline:
        time.sleep(0.01)
    builders.round_(log, 3, 0.1)
    log.append("completed")
    replay.finish()
    assert replay.wait(120)
    assert sum(events for events, _ in target.written) == len(log.path.read_bytes().splitlines())
    assert target.written[-1][1] == 3
    log.close()


def test_a_hanging_target_is_not_waited_for(tmp_path: Path) -> None:
    log, target = builders.job(tmp_path), FlakyTarget()
    replay = Replay(log.path, target)
    may_answer = threading.Event()
    target.open = lambda job_id: may_answer.wait(120) and 0.0  # type: ignore[method-assign]
    replay.start()
    replay.finish()
    assert not replay.wait(0.01)
    assert replay.describe_trouble() == "the flaky target: no answer in time"
    may_answer.set()
    assert replay.wait(120)
    log.close()


def test_the_copy_beside_the_checkpoints_is_written_at_starts_checkpoints_and_ends(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    log, copy = builders.job(tmp_path), tmp_path / "c" / "events.jsonl"
    replay = Replay(log.path, Mirror(CheckpointStore(str(tmp_path / "c"))))
    replay.step()
    assert copy.read_bytes() == log.path.read_bytes()
    builders.round_(log, 3, 0.1)
    replay.step()
    assert copy.read_bytes() != log.path.read_bytes(), "without a checkpoint, nothing is copied"
    for event in ("checkpoint", "interrupted"):
        log.append(event, round=3, path="p", seconds=1.0)
        replay.step()
        assert copy.read_bytes() == log.path.read_bytes(), event
    log.close()


@pytest.mark.parametrize(
    ("end", "fields", "complete"),
    [("completed", {}, True), ("interrupted", {}, False), ("failed", {"trace": ["why"]}, False), ("died", {}, False)],
)
def test_only_a_completed_job_has_further_artifacts(
    tmp_path: Path, end: str, fields: dict[str, list[str]], complete: bool
) -> None:
    def attach(record: Record) -> dict[str, bytes]:
        asked.append(record.entry["status"])
        return {"more.txt": b"more"}

    log, asked = builders.job(tmp_path), list[str]()
    replay = Replay(log.path, FileRecord(tmp_path / "runs"), attach)
    replay.step()
    assert asked == [], "it goes on"
    log.append(end, **fields)
    replay.step()
    log.close()
    assert replay.trouble is None
    assert asked == ["COMPLETED"] * complete
    assert (tmp_path / "runs" / "1" / "more.txt").exists() == complete


def test_where_there_are_no_checkpoints_there_is_no_copy(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    replay = Replay(log.path, Mirror(CheckpointStore(str(tmp_path / "none"))))
    replay.step()
    assert replay.trouble is None
    assert not (tmp_path / "none").exists()
    log.close()


def test_an_interruption_before_the_thread_starts_does_not_hide_itself(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    replay = Replay(log.path, FileRecord(tmp_path / "runs"))
    replay.finish()
    assert not replay.wait(1)
    log.close()


def test_events_that_arrive_during_a_write_are_written_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_module, "_MIN_PAUSE", 0.01)
    log, target = builders.job(tmp_path), FlakyTarget()
    replay, write = Replay(log.path, target), target.write

    def meanwhile(record: Record, new: list[Event], path: Path) -> None:
        write(record, new, path)
        if len(target.written) == 1:
            log.append("completed")
            replay.finish()

    monkeypatch.setattr(target, "write", meanwhile)
    replay.start()
    assert replay.wait(120)
    assert sum(new for new, _ in target.written) == len(log.path.read_bytes().splitlines())
    log.close()


def test_a_job_shows_that_it_is_alive_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = builders.job(tmp_path)
    replay = Replay(log.path, FileRecord(tmp_path / "runs"))

    def heartbeat(now: float) -> str:
        """The one in the record after a step at this time."""
        with monkeypatch.context() as patch:
            patch.setattr(replay_module.time, "time", lambda: now)
            replay.step()
        return str(json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["heartbeat"])

    assert [heartbeat(now) for now in (2e9, 2e9 + 10)] == [utc(now).isoformat() for now in (2e9, 2e9 + 10)]
    log.append("completed")
    log.close()
    assert heartbeat(2e9 + 20) == utc(events.read(log.path)[0][-1]["time"]).isoformat()


@pytest.mark.parametrize(
    ("throttled", "fails", "seconds", "pauses"),
    [
        (True, False, 0.0, [1.0]), (True, False, 0.5, [5.0]), (True, True, 0.5, [10.0]), (False, False, 0.5, []),
        (False, True, 0.0, [10.0]),
    ],
)  # fmt: skip
def test_a_slow_target_has_longer_pauses_and_one_that_fails_is_asked_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, throttled: bool, fails: bool, seconds: float, pauses: list[float]
) -> None:
    log, target = builders.job(tmp_path), FlakyTarget()
    target.throttled, target.fail_in = throttled, "write" if fails else None
    replay, now, paused = Replay(log.path, target), [100.0], list[float]()
    step = replay.step

    def takes() -> None:
        step()
        now[0] += seconds

    monkeypatch.setattr(replay, "step", takes)
    monkeypatch.setattr(replay_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(replay._closing, "wait", paused.append)
    monkeypatch.setattr(replay._new_events, "wait", lambda timeout: replay.finish())
    replay._run()
    assert paused == pauses
    log.close()
