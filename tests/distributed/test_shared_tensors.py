"""Frozen weights that the workers of a GPU share, with files in the place of GPU memory."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.distributed.shared_tensors import share


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "matrix": torch.randn(7, 5, generator=generator),
        "half": torch.randn(3, 9, generator=generator).bfloat16(),
        "packed": torch.randint(0, 255, (11, 1), generator=generator).byte(),
        "vector": torch.randn(3, generator=generator),
    }


def digest(tensors: dict[str, torch.Tensor]) -> str:
    values = [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors.values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def share_weights(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, devices: list[str], refuse: list[int], none: bool
) -> dict[str, Any]:
    allocated: list[str] = []

    def file(handle: bytes, shape: tuple[int, int]) -> torch.Tensor:
        return torch.from_file(handle.decode(), shared=True, size=shape[0] * shape[1]).view(shape)

    def allocate(shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, bytes]:
        if rank in refuse:
            raise cuda_ipc.NotPermitted("operation not supported")
        handle = f"{folder}/gpu{device.index}-{len(allocated)}"
        allocated.append(handle)
        return file(handle.encode(), shape), handle.encode()

    cuda_ipc.allocate, cuda_ipc.attach = allocate, lambda handle, shape, device: file(handle, shape)
    cuda_ipc.pin = lambda memory, device: True
    cuda_ipc.release = lambda memory, allocated: None
    torch.cuda.synchronize = lambda device: None
    torch.Tensor.to = lambda self, device: self.clone()  # type: ignore[method-assign, assignment]
    collectives = Collectives(rank, devices, 10, memory, f"file://{folder}/rendezvous")
    given = {} if none else weights()
    found, shared = share(collectives, given, torch.device(devices[rank]))
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in given.items()}
    before = digest(found)
    collectives.barrier()
    if rank == 0 and not none:
        found["vector"][1] = 7  # nobody does so, but it shows who shares
    collectives.barrier()
    after = digest(found)
    collectives.close()
    return {"before": before, "changed": after != before, "shared": shared, "allocated": len(allocated)}


@pytest.mark.parametrize(("devices", "sees"), [(["cuda:0"] * 3, [0, 1, 2]), (["cuda:0", "cuda:1", "cuda:0"], [0, 2])])
@pytest.mark.parametrize("refuse", [[], [0]])
def test_the_workers_of_a_gpu_have_one_copy_or_each_its_own(
    run_distributed: Any, devices: list[str], sees: list[int], refuse: list[int]
) -> None:
    results = run_distributed(share_weights, 3, devices, refuse, False)
    assert [result["before"] for result in results] == [digest(weights())] * 3
    assert [result["shared"] for result in results] == [not refuse] * 3
    assert [rank for rank in range(3) if results[rank]["changed"]] == ([0] if refuse else sees)
    if not refuse:  # of each GPU, one worker has allocated the rows of aggregation, and the weights
        assert [result["allocated"] for result in results] == [
            2 * (devices.index(d) == r) for r, d in enumerate(devices)
        ]


def test_nothing_frozen_is_nothing_to_share(run_distributed: Any) -> None:
    (result,) = run_distributed(share_weights, 1, ["cuda:0"], [], True)
    assert result == {"before": digest({}), "changed": False, "shared": True, "allocated": 1}
