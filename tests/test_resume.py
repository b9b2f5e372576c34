"""Interrupted and resumed ≡ never interrupted, bitwise: states, metrics, and which checkpoints stay."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from scaling_fl import launch
from scaling_fl.checkpoint import Checkpoints
from scaling_fl.config import Config
from scaling_fl.state_file import read_state
from tests import builders


def train(config: Config, work: Path) -> dict[int, dict[str, Any]]:
    """Prepare and train; the metrics of each round, without the seconds that it took."""
    seen: dict[int, dict[str, Any]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            seen[event["round"]] = {
                name: value
                for name, value in event["metrics"].items()
                if not name.startswith(("seconds.", "examples_per_second"))
            }

    work.mkdir()
    launch.train(launch.prepare(config, str(work), lambda event: None), keep)
    return seen


@pytest.mark.parametrize(
    ("sites", "iid", "schedule", "more"),
    [
        (1, True, "linear", {"gradient_accumulation_steps": 3, "validation_fraction": 0.2}),
        (4, False, "linear", {"validation_fraction": 0.1, "max_grad_norm": 0.5}),
        (4, True, "cosine", {"gradient_accumulation_steps": 2, "num_local_epochs": 2}),
        (1, False, "constant", {"optimiser": "sgd", "server_momentum": 0.9}),
        (4, True, "linear", {"server_optimiser": "adam", "keep_optimiser": True}),
        (1, False, "constant", {"keep_optimiser": True, "optimiser": "rmsprop"}),
        (4, False, "constant", {"keep_optimiser": True, "optimiser": "adagrad", "weight_decay": 0.01}),
        (1, False, "cosine", {"server_optimiser": "yogi", "server_learning_rate": 0.01}),
        (2, True, "constant", {"num_sites": 9, "participation": 0.4, "keep_optimiser": True}),
        (2, False, "linear", {"num_sites": 5, "sites_per_round": 3, "sampling": "by_examples", "exact_sum": False}),
        (2, True, "linear", {"num_sites": 3, "baseline": "local_only", "keep_optimiser": True}),
        (1, True, "constant", {"num_sites": 3, "baseline": "centralised"}),
    ],
)
def test_a_job_that_goes_on_from_a_checkpoint_is_the_one_that_never_stopped(
    small_config: Config, tmp_path: Path, sites: int, iid: bool, schedule: str, more: dict[str, Any]
) -> None:
    builders.write_csv(tmp_path / "train.csv", 43)  # unequal shards
    config = dataclasses.replace(
        small_config, site_ids=(-1,) * sites, iid_split=iid, lr_schedule=schedule, warmup=1.5, num_rounds=4,
        learning_rate=0.01, keep_checkpoints=0, keep_best="validation.loss", **more,
    )  # fmt: skip
    undisturbed = train(config, tmp_path / "first")
    rounds = [results["learning_rate"] for results in list(undisturbed.values())[1:]]
    assert len(set(rounds)) == (2 if schedule == "constant" else 4), "the schedule moves over the interruption"

    again = dataclasses.replace(config, checkpoints_dir=str(tmp_path / "again"), keep_checkpoints=1)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "out" / "round-000002.safetensors", tmp_path / "again")
    resumed = train(again, tmp_path / "second")
    assert resumed == {3: undisturbed[3], 4: undisturbed[4]}
    whole, header = read_state(tmp_path / "out" / "round-000004.safetensors")
    parts, resumed_header = read_state(tmp_path / "again" / "round-000004.safetensors")
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        assert array.tobytes() == parts[name].tobytes(), name
    best = min((1, 2, 3, 4), key=lambda round_: undisturbed[round_]["validation.loss"])
    assert header["best"] == resumed_header["best"]
    assert header["best"]["round"] == best
    assert Checkpoints(str(tmp_path / "again")).rounds() == sorted({4, best} - {1}, reverse=True)
