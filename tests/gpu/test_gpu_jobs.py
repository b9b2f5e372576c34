"""Whole jobs on a GPU: `./run-local.sh -m pytest -m gpu`."""

import dataclasses
import json
import multiprocessing.forkserver
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.checkpoint import store
from scaling_fl.config.schema import Config
from scaling_fl.errors import JobFailed
from scaling_fl.runtime import launcher
from tests import builders

pytestmark = pytest.mark.gpu
TWO_ON_A_GPU = (0, 0)


@pytest.fixture
def config(small_config: Config, tmp_path: Path) -> Config:
    """Without dropout, because a GPU's random numbers differ."""
    architecture = tmp_path / "model" / "config.json"
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture.write_text(json.dumps(json.loads(architecture.read_text()) | no_dropout))
    return dataclasses.replace(
        small_config, num_rounds=2, optimiser="sgd", learning_rate=0.01, precision="fp32", num_sites=5
    )


def run(config: Config, work: Path, **keys: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The tensors of the job's last checkpoint, and its events."""
    work.mkdir()
    config, events = dataclasses.replace(config, **keys), list[dict[str, Any]]()
    launcher.train(launcher.prepare(config, str(work), events.append), events.append)
    newest = store.CheckpointStore(str(config.checkpoints_dir)).fetch_newest(work / "newest")
    assert newest is not None
    assert newest[1]["round"] == config.num_rounds
    return dict(newest[0]), events


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"server_optimiser": "adam", "server_learning_rate": 0.01},
        {"keep_optimiser": True, "optimiser": "rmsprop", "learning_rate": 0.001},
        {"trainable": "lora", "lora_rank": 2, "learning_rate": 0.1},
        {"trainable": "lora", "lora_rank": 2, "lora_aggregation": "exact", "learning_rate": 0.1},
        {"exact_sum": False},
    ],
)
def test_two_processes_on_one_gpu_train_resume_and_agree_with_the_cpu(
    config: Config, tmp_path: Path, keys: dict[str, Any]
) -> None:
    before = set(os.listdir("/dev/shm"))
    config = dataclasses.replace(config, **keys)
    on_cpu, _ = run(config, tmp_path / "cpu", checkpoints_dir=str(tmp_path / "of-cpu"))
    run(config, tmp_path / "first", site_ids=TWO_ON_A_GPU, num_rounds=1)
    on_gpu, events = run(config, tmp_path / "second", site_ids=TWO_ON_A_GPU)
    assert on_cpu.keys() == on_gpu.keys()
    for name, array in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
    said = " ".join(event["text"] for event in events if event["event"] == "said")
    if "CUDA IPC isn't permitted" not in said:
        assert "its own copy of the frozen weights" not in said
    assert set(os.listdir("/dev/shm")) == before


def test_a_job_in_bf16_loses_digits_alone(config: Config, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        keys = {"precision": precision, "checkpoints_dir": str(tmp_path / f"of-{precision}"), "learning_rate": 0.1}
        _, events = run(config, tmp_path / precision, site_ids=TWO_ON_A_GPU, **keys)
        losses[precision] = [event["metrics"]["validation.loss"] for event in events if event["event"] == "round"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_the_same_seed_gives_the_same_bits_with_deterministic_algorithms(config: Config, tmp_path: Path) -> None:
    keys = {"site_ids": TWO_ON_A_GPU, "deterministic": True}
    first, second = (
        run(config, tmp_path / name, checkpoints_dir=str(tmp_path / f"of-{name}"), **keys)[0] for name in ("a", "b")
    )
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_job_and_frees_the_gpu(config: Config, tmp_path: Path, killed: int) -> None:
    before, pids = set(os.listdir("/dev/shm")), dict[int, int]()
    free = torch.cuda.mem_get_info(0)[0]
    work = tmp_path / "work"
    work.mkdir()
    config = dataclasses.replace(config, site_ids=TWO_ON_A_GPU, num_rounds=1000)
    plan = launcher.prepare(config, str(work), lambda event: None)

    def kill_one(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 2 and not pids:
            server = multiprocessing.forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
            workers = Path(f"/proc/{server}/task/{server}/children").read_text().split()
            pids.update(enumerate(sorted(map(int, workers))))
            os.kill(pids[killed], signal.SIGKILL)

    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        launcher.train(plan, kill_one)
    builders.wait_for_end(list(pids.values()))
    assert torch.cuda.mem_get_info(0)[0] >= free - 2**28
    assert set(os.listdir("/dev/shm")) == before
