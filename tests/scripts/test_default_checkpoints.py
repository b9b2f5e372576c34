"""Without `checkpoints_dir`, a job keeps its model and its last checkpoint in checkpoints/JOB_NAME."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from scaling_fl.config.schema import Config
from scaling_fl.state_file import read_state
from tests import builders

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    return builders.two_sites(tmp_path)


def test_a_job_keeps_its_model_and_last_checkpoint_and_is_resumed(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints" / "j"
    first = command(*words, "num_rounds=3")
    assert first.returncode == 0, first.stderr
    assert "checkpoint   checkpoints/j/round-000003.safetensors\nmodel        checkpoints/j/model\n" in first.stdout
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl", "model", "round-000003.safetensors"]

    again = command(*words, "num_rounds=3")
    assert again.returncode == 0, again.stderr
    assert "job j is finished: 3 rounds are done, and the model is in checkpoints/j/model" in again.stdout
    more = command(*words, "num_rounds=5", "keep_checkpoints=2")
    assert more.returncode == 0, more.stderr
    assert "job j resumes after round 3" in more.stdout
    left = sorted(path.name for path in folder.glob("round-*"))
    assert left == ["round-000004.safetensors", "round-000005.safetensors"], "keep_checkpoints holds to the end"

    newest = command("export", "with", "job_name=j")
    assert newest.returncode == 0, newest.stderr
    assert "model        checkpoints/j/model-round-000005\n" in newest.stdout
    exported, model = (
        {path.name: path.read_bytes() for path in folder.glob(f"{name}/*")} for name in ("model-round-000005", "model")
    )
    assert exported == model
    assert command("export", "with", f"checkpoint={folder / left[0]}").returncode == 0
    tensors = safetensors.numpy.load_file(folder / "model-round-000004" / "model.safetensors")
    saved = read_state(folder / left[0])[0]
    assert all(np.array_equal(tensor, saved[name]) for name, tensor in tensors.items())
    refused = command("export", "with", f"checkpoint={folder / left[0]}", "learning_rate=0.7")
    assert "can't be resumed with different settings: learning_rate was " in refused.stderr


def test_a_recorded_configuration_starts_the_same_job_under_another_name(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    first = command(*words, "num_rounds=2")
    assert first.returncode == 0, first.stderr
    again = command("with", "runs/1/config.json", "job_name=second")
    assert again.returncode == 0, again.stderr
    states = [read_state(tmp_path / "checkpoints" / name / "round-000002.safetensors")[0] for name in ("j", "second")]
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(array, states[1][name]) for name, array in states[0].items())
    resumed = command("with", "runs/1/config.json")
    assert "job j is finished: 2 rounds are done" in resumed.stdout


def test_the_best_round_is_exported_at_the_end_or_by_typing_the_job_again(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    """The learning rate makes the loss rise from the second round on, so that the best round is not the last."""
    words += ["optimiser=sgd", "learning_rate=3", "num_rounds=3", "keep_best=validation.loss"]
    first = command(*words)
    assert first.returncode == 0, first.stderr
    folder = tmp_path / "checkpoints" / "j"
    best = int(first.stdout.partition("best round by validation.loss: ")[2][:1])
    assert best < 3, first.stdout
    assert not (folder / "model-best").exists()

    both = command(*words, "export=both")
    assert both.returncode == 0, both.stderr
    assert "model        checkpoints/j/model\n" in both.stdout
    assert "best model   checkpoints/j/model-best\n" in both.stdout
    for name, round_ in (("model", 3), ("model-best", best)):
        tensors = safetensors.numpy.load_file(folder / name / "model.safetensors")
        expected = read_state(folder / f"round-{round_:06d}.safetensors")[0]
        assert tensors.keys() <= expected.keys()
        assert all(np.array_equal(tensor, expected[key]) for key, tensor in tensors.items())
    finished = command(*words, "export=both")
    assert "the model is in checkpoints/j/model and checkpoints/j/model-best; for" in " ".join(finished.stdout.split())


def test_the_name_of_the_job_may_stand_anywhere_in_the_folder() -> None:
    assert Config().named("news").checkpoints_dir == "checkpoints/news"
    typed = Config.from_mapping({"checkpoints_dir": "s3://lab/{job_name}/out"}).named("a-1")
    assert (typed.job_name, typed.checkpoints_dir) == ("a-1", "s3://lab/a-1/out")
    assert Config.from_mapping({"checkpoints_dir": None}).named("news").checkpoints_dir is None
    # Of the default folder, records keep the placeholder: typed again for another job, the keys mean another folder.
    assert Config().named("news").to_record()["checkpoints_dir"] == "checkpoints/{job_name}"
    assert typed.to_record()["checkpoints_dir"] == "s3://lab/a-1/out"
