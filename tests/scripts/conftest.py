"""Fixtures of tests that run scripts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments for a run of three sites with 34, 33 and 33 examples."""
    (tmp_path / "a folder").mkdir()
    train, test = (
        builders.write_csv(tmp_path / "a folder" / "train.csv", 100),
        builders.write_csv(tmp_path / "t.csv", 23, 1),
    )
    return [
        "with", "site_ids=[-1,-1,-1]", "num_rounds=3", "num_local_epochs=2", "task_name=csv", f"train_path={train}",
        f"test_path={test}", "text_column=body", "label_column=topic", f"model={builders.pretrained(tmp_path / 'model')}",
        "batch_size=8", "val_batch_size=5", "max_seq_len=16", "learning_rate=0.01", "threads_per_site=1",
    ]  # fmt: skip
