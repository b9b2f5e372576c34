"""Tests that need a GPU: `./run-local.sh -m pytest -m gpu`."""

import copy
import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.distributed import cuda_ipc, fused_sum
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.site import Site
from scaling_fl.models import gpus, masks
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
    if function is aggregation.aggregate and results[0]["note"]:
        pytest.skip(results[0]["note"])
    aggregation.assert_mean(results)
    for result in results:
        assert result["on gpu"] == (function is aggregation.aggregate)
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
    aggregation.assert_mean(results)


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
    masks.disable_inspection()
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


def test_a_compiled_model_learns_in_bf16(tmp_path: Path) -> None:
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU doesn't support bf16")
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("this machine has no C compiler, which torch.compile needs")
    losses = [
        trained(tmp_path, "cuda:0", precision="bf16", compile=compile_, learning_rate=0.01)[1]
        for compile_ in (False, True)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.fixture(autouse=True)
def _set_up() -> None:
    """As workers do before they use the GPU."""
    if torch.cuda.is_available():
        gpus.set_up(torch.device("cuda:0"), Config())


def test_long_texts_train_like_on_the_cpu(tmp_path: Path) -> None:
    """More tokens than a block of attention kernels."""
    long = builders.bert(dropout=0.0, positions=128)
    texts, labels = builders.texts_and_labels(24, 5)
    for name in ("train", "test"):
        token_store.write(tmp_path / name, builders.tokenizer(), [(text + " ") * 40 for text in texts], labels, 128)
    config = Config(batch_size=8, learning_rate=0.1, optimiser="sgd", precision="fp32", max_seq_len=128)
    found = []
    for device in ("cpu", "cuda:0"):
        resident = builders.resident(tmp_path, config, copy.deepcopy(long), device=device)
        delta, _ = Site(0, np.arange(24), resident).train(resident.model.flat.clone(), 1)
        found.append(delta.cpu().clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_evaluation_splits_batches_that_exceed_the_memory(tmp_path: Path) -> None:
    config = Config(precision="fp32", val_batch_size=23)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0), device="cuda:0")
    expected = evaluate(resident, resident.model.flat.clone(), 0, 1)
    forward, sizes = resident.model.module.forward, list[int]()

    def limited(input_ids: torch.Tensor, **more: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > 6:
            torch.empty(2**50, dtype=torch.uint8, device="cuda:0")  # a real error of the allocator
        return forward(input_ids=input_ids, **more)

    resident.model.module.forward = limited
    (found,), (whole,) = evaluate(resident, resident.model.flat.clone(), 0, 1), expected
    assert sizes[:3] == [23, 12, 6]
    assert found.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
    assert found.num_correct == whole.num_correct


def all_reduce_over_nccl(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> list[int]:
    torch.cuda.set_device(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    group = dist.new_group([0], backend="nccl")
    values = torch.tensor([2**62, -5], device="cuda:0")
    dist.all_reduce(values, group=group)
    dist.destroy_process_group()
    return list(values.cpu().tolist())


def test_the_kernel_sums_to_the_same_bits_as_torch() -> None:
    script = [sys.executable, "-m", "tests.distributed.compared_sums", "fused_sum_triton", "cuda:0"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
    assert fused_sum.refusal(torch.device("cuda:0")) == ""


def test_nccl_sums_whole_numbers_beside_gloo(run_distributed: Any) -> None:
    assert run_distributed(all_reduce_over_nccl, 1) == [[2**62, -5]]


def exchange_memory(rank: int, num_workers: int, memory: SharedMemory, folder: Path, values: int) -> float:
    device = torch.device("cuda:0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    handles: list[Any] = [None, None]
    own, handle = cuda_ipc.allocate((1, values), device)
    dist.all_gather_object(handles, handle)
    own.fill_(rank + 1)
    torch.cuda.synchronize()
    dist.barrier()
    seen = float(cuda_ipc.attach(handles[1 - rank], (1, values), device).double().sum())
    dist.barrier()
    return seen


@pytest.mark.parametrize("values", [5, 2**19 - 1, 2**19, 3 * 2**19 + 7, 2**24])
def test_memory_of_any_size_is_shared(run_distributed: Any, values: int) -> None:
    assert run_distributed(exchange_memory, 2, values) == [2.0 * values, 1.0 * values]
