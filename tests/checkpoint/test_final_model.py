from pathlib import Path
from typing import Any

import pytest

from scaling_fl.checkpoint.final_model import COMPLETE, is_exported
from scaling_fl.checkpoint.store import CheckpointStore


@pytest.mark.parametrize(
    ("change", "complete"),
    [
        ({}, True), ({"round": 3}, False), ({"files": {"config.json": 2, "model.safetensors": 5}}, False),
        ({"files": {"config.json": 2, "model.safetensors": 4, "vocab.txt": 1}}, False), ({"files": {}}, True),
        ({"files": None}, False), ({"round": None}, False),
    ],
)  # fmt: skip
def test_a_model_is_complete_if_its_last_file_names_the_round_and_all_sizes(
    tmp_path: Path, change: dict[str, Any], complete: bool
) -> None:
    checkpoints = CheckpointStore(str(tmp_path / "out"))
    checkpoints.probe()
    assert not is_exported(checkpoints, "model", 4)
    (tmp_path / "out" / "model").mkdir()
    for name, content in (("config.json", "{}"), ("model.safetensors", "1234")):
        (tmp_path / "out" / "model" / name).write_text(content)
    assert not is_exported(checkpoints, "model", 4)
    found = {"round": 4, "files": {"config.json": 2, "model.safetensors": 4}} | change
    checkpoints.write_json("done", found)
    (tmp_path / "out" / "done").rename(tmp_path / "out" / "model" / COMPLETE)
    assert is_exported(checkpoints, "model", 4) == complete
