import math
from pathlib import Path

import pytest

from scaling_fl.tracking import events
from scaling_fl.tracking import record as record_module
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.record import OUTPUT_END, Record, utc
from tests.tracking import builders


def test_a_resumed_job_continues_its_record(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()  # the launcher is killed after round 2, whose checkpoint was not written
    again = EventLog(log.path)
    builders.start(again, after_round=1, host="other")
    again.append("output", text="once more")
    for number, loss in ((2, 0.2), (3, "nan")):
        builders.round_(again, number, loss)
    again.append("model", path="c/model")
    again.append("completed")
    again.close()

    found = events.read(log.path)[0]
    times = {(event["event"], event.get("round")): event["time"] for event in found}
    first_start = next(event["time"] for event in found if event["event"] == "started")
    record = Record.from_events(found)
    assert record.entry["start_time"] == utc(first_start), "the time of the first start"
    assert record.entry["status"] == "COMPLETED"
    assert record.entry["stop_time"] == utc(found[-1]["time"])
    loss = record.points("train.loss")
    assert loss["steps"] == [1, 2, 3]
    assert loss["values"][:2] == [0.5, 0.2], "the repeated round has its new value"
    assert math.isnan(loss["values"][2])
    assert loss["timestamps"][1] == utc(times["round", 2])
    assert record.output == "hello\nonce more\n"
    starts = record.info["starts"]
    assert [(start["host"], start["after_round"], start["end"]) for start in starts] == [
        ("h", 0, "died"),
        ("other", 1, "completed"),
    ]
    assert record.info["files"] == {"checkpoint": "c/round-000001.safetensors", "model": "c/model"}
    assert record.info["job_id"] == events.job_id(log.path)
    assert record.sources == {"m.py": "print()\n"}


def test_a_job_that_starts_over_has_none_of_its_earlier_metrics(tmp_path: Path) -> None:
    """Not even those of round 0, which it evaluates again."""
    log = EventLog(tmp_path / "news.jsonl")
    builders.start(log)
    for number in (0, 1):
        builders.round_(log, number, 0.5)
    log.append("interrupted")
    builders.start(log)
    assert Record.from_events(events.read(log.path)[0]).metrics == {}
    builders.round_(log, 0, 0.25)
    log.close()
    record = Record.from_events(events.read(log.path)[0])
    assert record.metrics.keys() == {"train.loss", "only.in.0"}
    assert record.points("train.loss")["values"] == [0.25]


@pytest.mark.parametrize(
    ("end", "fields", "status"),
    [
        ("failed", {"trace": ["why"]}, "FAILED"),
        ("interrupted", {}, "INTERRUPTED"),
        ("died", {"at": 7.0}, "FAILED"),
        (None, {}, "RUNNING"),
    ],
)
def test_the_end_of_a_run_is_its_status(
    tmp_path: Path, end: str | None, fields: dict[str, object], status: str
) -> None:
    log = builders.job(tmp_path)
    if end is not None:
        log.append(end, **fields)
    log.close()
    entry = Record.from_events(events.read(log.path)[0]).entry
    assert entry["status"] == status
    if end == "failed":
        assert entry["fail_trace"] == ["why"]
    if end == "died":
        assert "killed, or its machine was lost" in entry["fail_trace"][0]
        assert entry["stop_time"] == utc(7.0)


@pytest.mark.parametrize("end", ["failed", "interrupted", "died"])
def test_a_job_that_runs_again_has_no_end(tmp_path: Path, end: str) -> None:
    log = builders.job(tmp_path)
    log.append(end, **({"trace": ["why"]} if end == "failed" else {}))
    builders.start(log, after_round=1)
    log.close()
    entry = Record.from_events(events.read(log.path)[0]).entry
    assert (entry["status"], entry["stop_time"], entry["fail_trace"]) == ("RUNNING", None, None)


def test_a_long_output_keeps_both_ends() -> None:
    record = Record.from_events(
        [{"time": 1.0, "event": "output", "text": f"{n:06d}" * 100} for n in range(3 * OUTPUT_END // 600)]
    )
    assert len(record.output) < 2 * OUTPUT_END + 200
    assert record.output.startswith("000000" * 100)
    assert record.output.endswith(f"{3 * OUTPUT_END // 600 - 1:06d}\n")
    middle = record.output[OUTPUT_END:-OUTPUT_END]
    assert f"{record.output_length - 2 * OUTPUT_END:,} characters omitted" in middle
    short = Record.from_events([{"time": 1.0, "event": "output", "text": "a" * (2 * OUTPUT_END - 1)}])
    assert short.output == "a" * (2 * OUTPUT_END - 1) + "\n"


def test_the_artifacts_hold_the_shards_and_every_metric_by_round(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()
    files = Record.from_events(events.read(log.path)[0]).artifacts()
    assert files["shards.csv"] == b"site,examples\n0,5\n1,4\n"
    assert files["metrics.csv"].decode().splitlines() == [
        "round,train.loss,only.in.1,seconds.checkpoint,only.in.2",
        "1,0.5,1.5,0.25,",
        "2,0.25,,,1.5",
    ]


def test_the_last_evaluation_and_the_label_counts_are_attached(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("shards", shards=[{"site": 0, "examples": 5, "label_counts": [2, 3]}])
    log.append("confusion", round=2, sets={"validation": [[3, 1], [0, 0]], "held_back": [[0, 2], [1, 1]]})
    log.close()
    record = Record.from_events(events.read(log.path)[0])
    assert record.info["shards"] == [{"site": 0, "examples": 5}]
    files = {name: content.decode() for name, content in record.artifacts().items()}
    assert files["shards.csv"] == "site,examples,label a,label b\n0,5,2,3\n"
    assert files["validation_confusion.csv"] == "true label,a,b\na,3,1\nb,0,0\n"
    # Class a: 3 of the 3 predicted and of the 4 true ones are right, F1 = 2 · 3 / (3 + 4). No b: 0 / 1 and 0 / 0.
    assert files["validation_per_class.csv"] == (
        f"label,precision,recall,f1,examples\na,1.0,0.75,{6 / 7},4\nb,0.0,0.0,0.0,0\n"
    )
    assert files["held_back_confusion.csv"] == "true label,a,b\na,0,2\nb,1,1\n"


def test_the_result_is_the_last_and_the_best_value_of_each_metric(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    for number, accuracy, loss in ((3, 0.75, 0.25), (4, 0.5, "nan")):
        log.append("round", round=number, metrics={
            "train.loss": loss, "validation.accuracy": accuracy, "site.0.train.loss": 9.0, "validation.examples": 8,
            "train.best_site.loss": 7.0, "validation.tokens": 9, "validation.perplexity": 8.0 + number,
            "validation.bits_per_byte": number / 4,
        })  # fmt: skip
    log.append("completed")
    log.close()
    # Train losses 0.5, 0.25, 0.25, NaN: the lowest, and of equal ones the earliest.
    assert Record.from_events(events.read(log.path)[0]).entry["result"] == {
        "round": 4,
        "train": {"loss": {"last": "nan", "best": 0.25, "best_round": 2}},
        "validation": {
            "accuracy": {"last": 0.5, "best": 0.75, "best_round": 3},
            "perplexity": {"last": 12.0, "best": 11.0, "best_round": 3},
            "bits_per_byte": {"last": 1.0, "best": 0.75, "best_round": 3},
        },
    }


def test_the_best_spread_over_sites_is_the_least(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    for number, mean, spread in ((3, 0.5, 0.25), (4, 0.75, 0.125), (5, 0.25, 0.5)):
        log.append("round", round=number, metrics={
            "site_test.mean_site.accuracy": mean, "site_test.std_site.accuracy": spread,
        })  # fmt: skip
    log.close()
    assert Record.from_events(events.read(log.path)[0]).result()["site_test"] == {
        "mean_site.accuracy": {"last": 0.25, "best": 0.75, "best_round": 4},
        "std_site.accuracy": {"last": 0.5, "best": 0.125, "best_round": 4},
    }


def test_a_job_that_starts_again_drops_the_rounds_of_its_first_run(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("interrupted")
    builders.start(log, after_round=0)
    builders.round_(log, 1, 0.9)
    log.close()
    record = Record.from_events(events.read(log.path)[0])
    assert record.points("train.loss")["values"] == [0.9]
    assert record.metrics.keys() == {"train.loss", "only.in.1"}


def test_of_very_many_sites_only_the_file_has_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database refuses documents that are too large."""
    monkeypatch.setattr(record_module, "MAX_SHARD_ROWS", 1)
    log = builders.job(tmp_path)
    log.close()
    record = Record.from_events(events.read(log.path)[0])
    assert record.info["shards"] == [{"site": 0, "examples": 5}]
    assert record.artifacts()["shards.csv"] == b"site,examples\n0,5\n1,4\n"
