"""What applies to all tasks; `test_test_fraction.py` and `tasks/` have the rest."""

from pathlib import Path
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task, load_test, reads_over_network
from tests import builders


@pytest.mark.parametrize(
    ("keys", "network"),
    [
        ({"task_name": "demo"}, False),
        ({"task_name": "hub", "dataset": "lab/news"}, True),
        ({"train_path": "train.csv", "test_path": "test.csv"}, False),
        ({"train_path": "s3://bucket/train.csv", "test_path": "test.csv"}, True),
        ({"train_path": "train.csv", "test_path": "https://host/test.csv"}, True),
        ({"train_path": "a.csv,s3://bucket/b.csv"}, True),
        ({"test_path": "s3://bucket/test.csv"}, True),
    ],
)
def test_training_or_test_rows_on_another_machine_are_read_over_a_network(keys: dict[str, Any], network: bool) -> None:
    """While they are, silence doesn't count as a stall."""
    assert reads_over_network(Config(**keys)) == network


@pytest.mark.parametrize(
    ("keys", "trained_on", "tested_on"),
    [
        ({"max_train_examples": 15}, 15, 40), ({"max_test_examples": 12}, 60, 12), ({"test_fraction": 0.25}, 45, 15),
        ({"max_train_examples": 15, "max_test_examples": 12}, 15, 12),
    ],
)  # fmt: skip
def test_rows_are_chosen_by_the_data_seed_alone(
    tmp_path: Path, keys: dict[str, Any], trained_on: int, tested_on: int
) -> None:
    paths = {"train_path": str(builders.write_csv(tmp_path / "train.csv", 60))}
    if "test_fraction" not in keys:
        paths["test_path"] = str(builders.write_csv(tmp_path / "test.csv", 40, 1))

    def texts(**more: int) -> tuple[list[str], ...]:
        config = Config(task_name="csv", text_column="body", label_column="topic", **paths, **keys, **more)
        task = load_task(config)
        assert load_test(config).test.texts == task.test.texts
        return task.train.texts, task.test.texts

    first, other_seed, other_data_seed = texts(), texts(seed=3), texts(data_seed=3)
    assert tuple(map(len, first)) == (trained_on, tested_on)
    assert other_seed == first
    for split, whole in ((0, trained_on == 60), (1, tested_on == 40)):
        assert (other_data_seed[split] == first[split]) == whole
