"""Tests that need a GPU: `./run-local.sh -m pytest -m gpu`."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.checkpoint import store
from scaling_fl.config.schema import Config
from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.site import Site
from scaling_fl.models import loading
from scaling_fl.runtime import launcher
from tests import builders
from tests.distributed import aggregation

pytestmark = pytest.mark.gpu


def aggregate_without_ipc(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str]
) -> dict[str, Any]:
    def refuse(*args: Any) -> Any:
        raise cuda_ipc.NotPermitted("some containers forbid it")

    cuda_ipc.allocate = refuse
    return aggregation.aggregate(rank, num_workers, memory, folder, places)


@pytest.mark.parametrize("function", [aggregation.aggregate, aggregate_without_ipc])
def test_sites_that_share_a_gpu_aggregate_to_the_mean(run_distributed: Any, function: Callable[..., Any]) -> None:
    before = set(os.listdir("/dev/shm"))
    results = run_distributed(function, 3, ["cuda:0"] * 3)
    expected = sum(d.double() * n / 40 for rank in range(3) for _, d, n in aggregation.deltas(rank))
    if function is aggregation.aggregate and results[0]["note"]:
        pytest.skip(results[0]["note"])
    for result in results:
        assert result["on gpu"] == (function is aggregation.aggregate)
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])
        assert result["calls"] == {"all_reduce": 4, "barrier": 1}
    assert set(os.listdir("/dev/shm")) == before


def aggregate_between_gpus(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str]
) -> dict[str, Any]:
    torch.cuda.set_device(places[rank])
    return aggregation.aggregate(rank, num_workers, memory, folder, places)


def test_leaders_of_several_gpus_all_reduce_over_nccl(run_distributed: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("this machine has one GPU")
    results = run_distributed(aggregate_between_gpus, 3, ["cuda:0", "cuda:0", "cuda:1"])
    expected = sum(d.double() * n / 40 for rank in range(3) for _, d, n in aggregation.deltas(rank))
    for result in results:
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])


def trained(folder: Path, device: str, **keys: Any) -> tuple[torch.Tensor, float, list[Any]]:
    """Train site 2 for one round without dropout; return the parameters, the training loss and the evaluation."""
    config = Config(**{"batch_size": 7, "learning_rate": 0.1, "optimiser": "sgd", "precision": "fp32"} | keys)
    resident = builders.resident(folder, config, builders.bert(dropout=0.0), device=device)
    params = resident.model.flat.clone()
    delta, metrics = Site(2, np.arange(40), resident).train(params, 3)
    after = params - delta
    return after.cpu(), metrics.loss, evaluate(resident, after, 0, 1)


@pytest.mark.parametrize("keys", [{}, {"compile": True}, {"gradient_checkpointing": True}, {"max_grad_norm": 0.3}])
def test_a_gpu_trains_like_the_cpu(tmp_path: Path, keys: dict[str, Any]) -> None:
    if "compile" in keys and not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("this machine has no C compiler, which torch.compile needs")
    expected, loss, batches = trained(tmp_path, "cpu", **keys | {"compile": False})
    found, loss_on_gpu, batches_on_gpu = trained(tmp_path, "cuda:0", **keys)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    assert loss_on_gpu == pytest.approx(loss, rel=1e-4)
    for found_batch, batch in zip(batches_on_gpu, batches, strict=True):
        assert found_batch.loss_sum == pytest.approx(batch.loss_sum, rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.bfloat16), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_lower_precision_learns(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU doesn't support bf16")
    config = Config(batch_size=5, learning_rate=0.001, num_local_epochs=15, precision=precision, max_grad_norm=1.0)
    resident = builders.resident(tmp_path, config, builders.bert(), device="cuda:0")
    seen: set[torch.dtype] = set()
    resident.model.module.classifier.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    params = resident.model.flat.clone()
    delta, first = Site(0, np.arange(40), resident).train(params, 1)
    _, second = Site(0, np.arange(40), resident).train(params - delta, 2)
    assert second.loss < 0.5 * first.loss
    assert seen == {dtype}
    assert {delta.dtype, resident.model.gradient.dtype} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_the_cpu_never_waits_for_the_gpu_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, optimiser: str
) -> None:
    inspect_mask = transformers.masking_utils._ignore_bidirectional_mask_sdpa
    monkeypatch.setattr(
        transformers.masking_utils, "_ignore_bidirectional_mask_sdpa", inspect_mask
    )  # restored at the end
    loading.disable_mask_inspection()
    config = Config(batch_size=5, learning_rate=0.001, precision=precision, max_grad_norm=1.0, optimiser=optimiser)
    resident = builders.resident(tmp_path, config, builders.bert(), device="cuda:0")
    steps: list[int] = []

    def watch() -> None:
        steps.append(1)
        torch.cuda.set_sync_debug_mode(
            "error" if len(steps) < 8 else "default"
        )  # from the first step to the last, the eighth

    try:
        Site(0, np.arange(40), dataclasses.replace(resident, on_step=watch)).train(resident.model.flat.clone(), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 8


def test_two_sites_on_one_gpu_train_resume_and_agree_with_the_cpu(small_config: Config, tmp_path: Path) -> None:
    architecture = tmp_path / "model" / "config.json"  # without dropout, because a GPU's random numbers differ
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    architecture.write_text(json.dumps(json.loads(architecture.read_text()) | no_dropout))
    common = {"num_rounds": 2, "optimiser": "sgd", "learning_rate": 0.01, "precision": "fp32"}

    def run(name: str, **keys: Any) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        config = dataclasses.replace(small_config, **common | keys)
        launcher.train(launcher.prepare(config, str(tmp_path / name), lambda event: None), lambda event: None)
        newest = store.CheckpointStore(str(config.checkpoints_dir)).fetch_newest(tmp_path / "newest")
        assert newest is not None
        assert newest[1]["round"] == config.num_rounds
        return dict(newest[0])  # read now: the next run overwrites the file

    before = set(os.listdir("/dev/shm"))
    on_cpu = run("cpu", checkpoints_dir=str(tmp_path / "of-cpu"))
    run("first", site_ids=(0, 0), num_rounds=1)
    on_gpu = run("second", site_ids=(0, 0))
    assert on_cpu.keys() == on_gpu.keys()
    for name, array in on_cpu.items():
        np.testing.assert_allclose(on_gpu[name], array, rtol=1e-3, atol=1e-5, err_msg=name)
    assert set(os.listdir("/dev/shm")) == before
