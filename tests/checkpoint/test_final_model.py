from pathlib import Path
from typing import Any

import pytest

from scaling_fl.checkpoint.final_model import COMPLETE, is_exported, publish
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests import builders


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


def test_a_model_that_is_published_again_is_incomplete_until_all_its_files_are_there(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(str(tmp_path / "out"))
    checkpoints.probe()
    (tmp_path / "new").mkdir()
    for name in ("config.json", COMPLETE):
        (tmp_path / "new" / name).write_text("{}")
    checkpoints.publish_folder(tmp_path / "new", "model", COMPLETE)
    assert (tmp_path / "out" / "model" / COMPLETE).exists()
    (tmp_path / "out" / "model" / "vocab.txt").mkdir()  # no file can take its place
    (tmp_path / "new" / "vocab.txt").write_text("a")
    with pytest.raises(UserError, match="cannot write model"):
        checkpoints.publish_folder(tmp_path / "new", "model", COMPLETE)
    assert not (tmp_path / "out" / "model" / COMPLETE).exists()
    (tmp_path / "out" / "model" / "vocab.txt").rmdir()
    checkpoints.publish_folder(tmp_path / "new", "model", COMPLETE)
    assert (tmp_path / "out" / "model" / COMPLETE).exists()


def test_each_file_of_a_model_that_is_published_is_progress(tmp_path: Path) -> None:
    checkpoints, told = CheckpointStore(str(tmp_path / "out")), list[str]()
    checkpoints.probe()
    builders.tokenizer().save_pretrained(tmp_path / "prepared")
    module, prepared = builders.bert(), tmp_path / "prepared"
    publish(checkpoints, "model", 4, module, prepared, "a card", True, "float32", lambda: told.append("alive"))
    assert len(told) == len(checkpoints.sizes("model")) > 3
    assert is_exported(checkpoints, "model", 4)
    assert checkpoints.read("model/README.md") == b"a card"
