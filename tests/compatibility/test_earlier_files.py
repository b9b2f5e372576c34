"""Compatibility with version 0.1.0: its checkpoint, event file, file record and MongoDB entry are continued.

`earlier/` contains job `earlier` after round 2 of 4, as commit 732e589 wrote it (with host names replaced, and all but one
of the recorded source files removed), and `expected.safetensors`, the final state of the same job in that version.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pymongo
import pytest
import safetensors.numpy
from bson import json_util

from scaling_fl.commands import evaluate
from scaling_fl.commands.export import export
from scaling_fl.config.schema import Config
from tests import builders

EARLIER = Path(__file__).parent / "earlier"
KEYS = [
    "with", "site_ids=[-1,-1]", "num_sites=3", "sites_per_round=2", "partition=dirichlet", "alpha=1.0", "task_name=csv",
    "train_path=train.csv", "test_path=test.csv", "text_column=body", "label_column=topic", "model=model",
    "max_seq_len=12", "batch_size=4", "learning_rate=0.03", "keep_optimiser=True", "server_optimiser=adam",
    "server_learning_rate=0.03", "threads_per_site=1", "job_name=earlier", "checkpoints_dir=out", "keep_checkpoints=1",
    "max_grad_norm=1.0", "author=tester",
]  # fmt: skip

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder in which the earlier version was stopped, and in which the command runs."""
    shutil.copytree(EARLIER, tmp_path, dirs_exist_ok=True)
    (tmp_path / "expected.safetensors").unlink()
    return tmp_path


def test_a_job_of_the_earlier_version_resumes_to_the_same_result(command: Command, folder: Path, mongo: str) -> None:
    database = pymongo.MongoClient(f"mongodb://{mongo}")["lab"]
    for name, documents in json_util.loads((EARLIER / "entry.json").read_text()).items():
        database[name].insert_many(documents)
    before = json.loads((folder / "runs" / "1" / "metrics.json").read_text())

    address = {"SACRED_MONGO_URL": f"mongodb://{mongo}", "SACRED_DATABASE": "lab"}
    done = command(*KEYS, "num_rounds=4", **address)
    assert done.returncode == 0, done.stdout + done.stderr

    tensors, header = builders.read(folder / "out" / "round-000004.safetensors")
    expected, earlier_header = builders.read(EARLIER / "expected.safetensors")
    assert tensors.keys() == expected.keys()
    same_machine = header["environment"] == earlier_header["environment"]
    for name, array in expected.items():
        if same_machine:
            assert np.array_equal(tensors[name], array), name
        elif "key.bias" not in name:  # the gradient is rounding noise, which Adam scales up to full steps
            np.testing.assert_allclose(tensors[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    assert header.keys() == earlier_header.keys() | {"cohort_rules"}
    assert header["config"].keys() >= earlier_header["config"].keys()
    assert header["history"].keys() == {"0", "1", "2", "3"}

    # One record contains the rounds of both versions.
    assert [path.name for path in (folder / "runs").iterdir() if path.name.isdigit()] == ["1"]
    after = json.loads((folder / "runs" / "1" / "metrics.json").read_text())
    assert after.keys() >= before.keys()
    for name in ("train.loss", "validation.accuracy"):
        assert after[name]["steps"] == list(range(name == "train.loss", 5))
        assert after[name]["values"][: len(before[name]["values"])] == before[name]["values"]
    assert json.loads((folder / "runs" / "1" / "run.json").read_text())["status"] == "COMPLETED"
    assert len(json.loads((folder / "runs" / "1" / "info.json").read_text())["starts"]) == 2

    # On a busy machine, the server may not have answered before the job's end.
    updates = (command("sync", *KEYS, **address) for _ in range(10))
    assert any(update.returncode == 0 for update in updates)
    (entry,) = database["runs"].find()
    assert (entry["_id"], entry["status"], len(entry["info"]["starts"])) == (1, "COMPLETED", 2)
    points: dict[str, Any] = {document["name"]: document for document in database["metrics"].find()}
    assert points["train.loss"]["steps"] == [1, 2, 3, 4]
    assert points["train.loss"]["values"] == after["train.loss"]["values"]


def test_a_job_finished_by_the_earlier_version_is_not_trained_again(command: Command, folder: Path) -> None:
    """The final model is missing. It is exported from the last checkpoint, without training the last round again."""
    done = command(*KEYS, "num_rounds=2", "-u")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "out" / "model" / "model.safetensors").exists()
    assert [path.name for path in (folder / "out").glob("round-*")] == ["round-000002.safetensors"]
    assert (folder / "out" / "round-000002.safetensors").read_bytes() == (
        EARLIER / "out" / "round-000002.safetensors"
    ).read_bytes()


def test_resuming_an_earlier_job_with_changed_keys_is_refused(command: Command, folder: Path) -> None:
    changed = [key.replace("learning_rate=0.03", "learning_rate=0.04") for key in KEYS]
    done = command(*changed, "num_rounds=4")
    assert done.returncode == 1
    assert "learning_rate was 0.03, is now 0.04" in done.stdout + done.stderr
    assert (folder / "runs" / "_events" / "earlier.jsonl").read_bytes() == (
        EARLIER / "runs" / "_events" / "earlier.jsonl"
    ).read_bytes()


def test_a_checkpoint_of_the_earlier_version_is_exported_and_measured(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    checkpoint = "out/round-000002.safetensors"
    export(MagicMock(), Config(checkpoint=checkpoint))
    expected, _ = builders.read(folder / checkpoint)
    exported = safetensors.numpy.load_file(folder / "out" / "model-round-000002" / "model.safetensors")
    assert exported
    assert all(np.array_equal(tensor, expected[name]) for name, tensor in exported.items())

    def measured(checkpoint: str) -> list[str]:
        lines: list[str] = []
        keys = {"checkpoint": checkpoint, "task_name": "csv", "train_path": "train.csv", "test_path": "test.csv"}
        keys |= {"text_column": "body", "label_column": "topic", "threads_per_site": 1}  # type: ignore[dict-item]
        send = MagicMock(side_effect=lambda event: lines.append(event.get("text", "")))
        evaluate.show(send, Config.from_mapping(keys), 120)
        return lines[next(i for i, line in enumerate(lines) if line.startswith("loss ")) :]

    assert measured(checkpoint) == measured("out/model-round-000002")
