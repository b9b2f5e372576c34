"""What applies to all tasks; `test_test_fraction.py` and `tasks/` have the rest."""

from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import reads_over_network


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
