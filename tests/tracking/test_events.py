import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.tracking import events
from scaling_fl.tracking.events import EventLog
from tests.tracking import builders


def kinds(path: Path) -> list[str]:
    return [event["event"] for event in events.read(path)[0]]


def test_a_log_is_append_only_and_keeps_the_job_id(tmp_path: Path) -> None:
    path = tmp_path / "_events" / "news.jsonl"
    first = EventLog(path)
    first.append("started", start={"after_round": 0})
    first.append("completed")
    first.close()
    before, id_ = path.read_bytes(), events.job_id(path)
    second = EventLog(path)
    second.append("started", start={"after_round": 0})
    second.close()
    assert path.read_bytes().startswith(before)
    assert kinds(path) == ["created", "started", "completed", "started"]
    assert events.job_id(path) == id_
    other = EventLog(tmp_path / "other.jsonl")
    other.close()
    assert events.job_id(other.path) not in (None, id_)


def test_times_strictly_increase_whatever_the_clock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are merged by them: a clock that stands still, or is set back, also between two runs."""
    clock = [1000.0]
    monkeypatch.setattr(events.time, "time", lambda: clock[0])
    log = EventLog(tmp_path / "news.jsonl")
    log.append("output", text="a")
    clock[0] -= 60
    log.append("output", text="b")
    log.close()
    again = EventLog(log.path)
    again.append("output", text="c")
    clock[0] = 2000.0
    again.append("output", text="d")
    again.close()
    times = [event["time"] for event in events.read(log.path)[0]]
    assert times == sorted(set(times))
    assert (times[0], times[-1]) == (1000.0, 2000.0)
    assert times[-2] < 1000.001
    reversed_lines = b"".join(reversed(log.path.read_bytes().splitlines(keepends=True)))
    assert events.merge(reversed_lines) == log.path.read_bytes()


def test_a_job_that_starts_over_has_no_rounds_and_one_that_resumes_those_up_to_its_checkpoint() -> None:
    def start(after: int) -> dict[str, object]:
        return {"event": "started", "start": {"after_round": after}}

    done = [start(0), *({"event": "round", "round": number} for number in range(4))]
    assert events.rounds_of(done) == {0, 1, 2, 3}
    assert events.rounds_of([*done, start(2)]) == {0, 1, 2}
    assert events.rounds_of([*done, start(0)]) == set(), "round 0 is evaluated again, too"
    assert events.rounds_of([*done, start(0), {"event": "round", "round": 0}]) == {0}


def test_a_run_without_an_end_has_died_at_its_last_event(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()
    last = events.read(log.path)[0][-1]
    EventLog(log.path).close()
    died = events.read(log.path)[0][-1]
    assert (died["event"], died["at"]) == ("died", last["time"])
    assert died["time"] > last["time"]
    EventLog(log.path).close()
    assert kinds(log.path).count("died") == 1


def test_a_partial_line_is_skipped_and_later_lines_are_read(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-20])
    again = EventLog(log.path)
    again.append("started", start={"after_round": 0})
    again.close()
    assert kinds(log.path)[-3:] == ["checkpoint", "died", "started"], "only the line of the second round is lost"


def test_reading_continues_from_the_offset_of_the_last_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    lines = [json.dumps({"time": n, "event": f"e{n}"}).encode() + b"\n" for n in range(3)]
    path.write_bytes(lines[0] + lines[1][:7])
    found, offset = events.read(path)
    assert [event["event"] for event in found] == ["e0"]
    path.write_bytes(b"".join(lines))
    found, offset = events.read(path, offset)
    assert [event["event"] for event in found] == ["e1", "e2"]
    assert events.read(path, offset) == ([], path.stat().st_size)


def test_diverged_copies_are_merged_into_one_file(tmp_path: Path) -> None:
    """Machine A was lost, B resumed from A's last copy, and A comes back."""
    log = builders.job(tmp_path)
    copy = log.path.read_bytes()
    builders.round_(log, 3, 0.1)  # A continues after its last copy
    log.close()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "news.jsonl").write_bytes(copy)
    other = EventLog(tmp_path / "b" / "news.jsonl")
    builders.start(other, after_round=1, host="b")
    other.close()
    here, there = log.path.read_bytes(), other.path.read_bytes()
    merged = events.merge(here, there)
    assert merged == events.merge(there, here)
    lines = [json.loads(line) for line in merged.splitlines()]
    assert [line["event"] for line in lines][-4:] == ["round", "died", "started", "shards"]
    assert [line["round"] for line in lines if line["event"] == "round"] == [1, 2, 3]
    assert len(lines) == len({line["time"] for line in lines}), "no line twice"


def test_the_copy_beside_the_checkpoints_restores_the_file_on_a_new_disk(tmp_path: Path) -> None:
    log = builders.job(tmp_path / "away")
    log.close()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "events.jsonl").write_bytes(log.path.read_bytes())
    runs, config = tmp_path / "runs", Config(job_name="news", checkpoints_dir=str(tmp_path / "c"))
    found = events.merge_mirror(runs, config)
    assert found.read_bytes() == log.path.read_bytes()
    nothing = events.merge_mirror(runs, Config(job_name="other"))
    assert not nothing.exists()
    assert events.job_id(nothing) is None


def test_an_unwritable_event_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"runs/_events/j\.jsonl: cannot write to it .*or pass -u"):
        EventLog(tmp_path / "runs" / "_events" / "j.jsonl")


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log._file = open("/dev/full", "ab")  # noqa: SIM115 (the log closes it)
    with pytest.raises(
        UserError, match=r"news\.jsonl: cannot write to it \(No space left on device\); free some space"
    ):
        log.append("completed")
    log.close()


def test_an_unwritable_folder_is_detected_without_leaving_a_trace(tmp_path: Path) -> None:
    events.check_writable(tmp_path / "new" / "runs")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs: cannot write to it .*or pass -u for no record"):
        events.check_writable(tmp_path / "file" / "runs")


def test_a_log_has_one_writer(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    before = log.path.read_bytes()
    with pytest.raises(
        UserError, match=r"job_name=news: another run of this job is writing to .*news.jsonl; wait for it to end"
    ):
        EventLog(log.path)
    assert log.path.read_bytes() == before, "the live run is not recorded as died"
    log.close()
    EventLog(log.path).close()


def test_the_copy_of_another_job_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    builders.job(tmp_path / "elsewhere", "a").close()
    shutil.copy(tmp_path / "elsewhere" / "a.jsonl", tmp_path / "out" / "events.jsonl")
    there = Config(job_name="b", checkpoints_dir=str(tmp_path / "out"))
    with pytest.raises(UserError, match="it holds the checkpoints of job a; set job_name=a to resume it"):
        events.merge_mirror(tmp_path / "runs", there)
    assert not (tmp_path / "runs").exists()
    namesake = builders.job(tmp_path / "runs" / "_events", "a")
    namesake.close()
    before = namesake.path.read_bytes()
    with pytest.raises(
        UserError, match=r"job_name=a: .*a.jsonl and checkpoints_dir=.* hold different jobs of this name; to resume"
    ):
        events.merge_mirror(tmp_path / "runs", dataclasses.replace(there, job_name="a"))
    assert namesake.path.read_bytes() == before
    (tmp_path / "out" / "events.jsonl").write_text(
        '{"event": "round", "time": "noon"}\n[1]\n{"event": "x", "time": 1}\n'
    )
    assert events.merge_mirror(tmp_path / "runs", dataclasses.replace(there, job_name="c")).exists() is False
