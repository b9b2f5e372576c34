import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling_fl.reporting import frames
from scaling_fl.reporting.frames import Frames
from tests.compatibility.test_earlier_files import EARLIER
from tests.reporting import builders


@pytest.fixture
def found(tmp_path: Path) -> Frames:
    return frames.load(builders.job(tmp_path))


def rows(frame: pd.DataFrame, **where: Any) -> list[tuple[Any, ...]]:
    """The rows with these values, without the job and the columns given."""
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return list(frame.drop(columns=["job", *where]).itertuples(index=False, name=None))


def test_a_job_is_a_row_with_its_keys_status_seconds_and_final_metrics(found: Frames) -> None:
    (row,) = found.runs.to_dict("records")
    expected = {
        "job": "news", "status": "COMPLETED", "round": 2, "batch_size": 4, "model": "distilbert", "site_ids": (0, 0),
        "num_sites": 3, "precision": "fp32", "num_parameters": 1000,
        "seconds": 0.25 + 2 * 2.75,  # idle time is part of the training, and checkpoints are written beside it
        "validation.accuracy": 0.75, "validation.accuracy.best": 0.875, "validation.accuracy.best_round": 1,
        "train.loss": 0.5, "validation.loss.best": 0.7,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert math.isnan(row["validation.loss"])


def test_metrics_of_the_federation_and_of_sites_are_rows(found: Frames) -> None:
    assert set(found.rounds["job"]) == {"news"}
    assert rows(found.rounds, metric="validation.accuracy") == [(0, 0.5), (1, 0.875), (2, 0.75)]
    assert rows(found.rounds, metric="train.loss") == [(1, 1.0), (2, 0.5)]
    assert set(found.rounds["metric"]) == {"train.loss", "validation.accuracy", "validation.loss"}
    assert rows(found.sites, metric="train.loss", site=2) == [(1, 2.125), (2, 2.25)]


def test_shards_are_rows_of_round_0(found: Frames) -> None:
    assert rows(found.sites, metric="shard.examples", round=0) == [(0, 5.0), (1, 9.0), (2, 4.0)]
    assert rows(found.sites, metric="shard.label_entropy_bits", round=0) == [(0, 0.0), (1, 0.25), (2, 0.5)]
    assert rows(found.sites, metric="shard.label.art", round=0) == [(0, 0.0), (1, 5.0), (2, 3.0)]


def test_phases_are_rows(found: Frames) -> None:
    assert rows(found.phases, round=2) == [
        ("aggregate", 0.5), ("checkpoint", 0.0625), ("evaluate", 0.25), ("idle", 0.75), ("train", 2.0)
    ]  # fmt: skip
    assert rows(found.phases, round=0) == [("evaluate", 0.25)]


@pytest.mark.parametrize(
    ("keys", "steps", "examples", "sent"),
    [
        # Sites of 5, 9 and 4 examples: 2, 3 and 1 batches of 4, in 2 epochs.
        ({}, 12, 36, 3),
        ({"num_local_epochs": 1, "local_epochs_range": (3, 3)}, 18, 54, 3),
        ({"num_local_epochs": 1, "num_local_steps": 5}, 15, 5 * (4 + 4 + 4), 3),  # full batches
        ({"baseline": "centralised"}, 10, 36, 0),  # 18 examples: 5 batches
        ({"baseline": "local_only"}, 12, 36, 0),
    ],
)
def test_costs_are_cumulative(tmp_path: Path, keys: dict[str, Any], steps: int, examples: int, sent: int) -> None:
    found = frames.load(builders.job(tmp_path, **keys))
    model = 4 * 1000  # bytes, for each site that sends it or is sent it
    assert rows(found.costs) == [
        (0, 0, 0, 0.25, 0.0),
        (1, steps, examples, 3.0, sent * 2.0 * model),
        (2, 2 * steps, 2 * examples, 5.75, 2 * sent * 2.0 * model),
    ]


def test_costs_count_the_cohort_alone(tmp_path: Path) -> None:
    found = frames.load(builders.job(tmp_path, rounds=4, sites_per_round=1))
    steps = {5: 4, 9: 6, 4: 2}
    trained = found.costs["examples"].diff().dropna() / 2
    assert set(trained) <= set(steps)
    assert list(found.costs["local_steps"].diff().dropna()) == [steps[int(examples)] for examples in trained]
    assert list(found.costs["bytes"].diff().dropna()) == [8000.0] * 4


def test_the_confusion_of_the_last_evaluation_is_rows(found: Frames) -> None:
    assert rows(found.confusion, set="validation", round=2) == [
        ("sport", "sport", 3), ("sport", "art", 1), ("art", "sport", 2), ("art", "art", 7)
    ]  # fmt: skip


def test_jobs_that_share_a_name_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    found = frames.load(builders.job(tmp_path), builders.job(tmp_path / "b", rounds=1))
    assert list(found.runs["round"]) == [2, 1]
    names = [f"news ({job_id[:8]})" for job_id in found.runs["job_id"]]
    assert list(found.runs["job"]) == names
    assert len(set(names)) == 2
    assert set(found.rounds["job"]) == set(names)


def test_nothing_gives_empty_frames_with_their_columns() -> None:
    empty = frames.of_records([])
    assert list(empty.rounds.columns) == ["job", "round", "metric", "value"]
    assert [len(frame) for frame in empty[:-1]] == [0] * 7


def test_records_of_version_0_1_0_are_read() -> None:
    found = frames.load(EARLIER / "runs")
    assert found.skipped == {}
    (row,) = found.runs.to_dict("records")
    assert (row["job"], row["round"], row["num_sites"], row["status"]) == ("earlier", 2, 3, "COMPLETED")
    assert len(rows(found.rounds, metric="validation.accuracy")) == 3
    assert [round_ for round_, *_ in rows(found.costs)] == [0, 1, 2]
    assert found.confusion.empty
