"""A small job whose keys sweeps vary."""

from pathlib import Path
from typing import Any

import pytest

from tests import builders


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Keys of a small job, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    builders.write_csv(tmp_path / "train.csv", 41)
    builders.write_csv(tmp_path / "test.csv", 9, 1)
    return {
        "site_ids": [-1], "num_rounds": 2, "task_name": "csv", "train_path": "train.csv", "test_path": "test.csv",
        "text_column": "body", "label_column": "topic", "model": "tiny",
        "max_seq_len": 16, "batch_size": 8, "threads_per_site": 1, "report": False,
    }  # fmt: skip
