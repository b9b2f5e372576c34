"""Aggregation in GPU memory, with files in its place."""

import ctypes
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError
from tests.distributed.aggregation import aggregate, assert_mean


def aggregate_like_gpus(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, devices: list[str], refuse: list[int]
) -> dict[str, Any]:
    """Like `aggregate`, with files in place of GPU memory; CUDA IPC is refused to the ranks in `refuse`."""

    def file(handle: bytes, shape: tuple[int, int]) -> torch.Tensor:
        return torch.from_file(handle.decode(), shared=True, size=shape[0] * shape[1]).view(shape)

    def allocate(shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, bytes]:
        if rank in refuse:
            raise cuda_ipc.NotPermitted("operation not supported")
        handle = f"{folder}/gpu{device.index}".encode()
        return file(handle, shape), handle

    def attach(handle: bytes, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
        if rank in refuse:
            raise cuda_ipc.NotPermitted("invalid device context")
        return file(handle, shape)

    pinned: list[torch.Tensor] = []
    finished: list[torch.device] = []
    order: list[str] = []  # of exchanges with other workers, barriers, and synchronisations with the GPU

    def pin(memory: torch.Tensor, device: torch.device) -> bool:
        pinned.append(memory)
        return rank != 1

    released: list[bool] = []
    cuda_ipc.allocate, cuda_ipc.attach, cuda_ipc.pin = allocate, attach, pin
    cuda_ipc.release = lambda memory, allocated: released.append(allocated)
    torch.cuda.synchronize = lambda device: (finished.append(device), order.append("finish"))
    exchange, mean, barrier = Collectives.all_gather_numbers, Collectives.weighted_mean, dist.barrier
    dist.barrier = lambda: (order.append("barrier"), barrier())

    def noted(self: Collectives, *values: float) -> list[list[float]]:
        order.append("exchange")
        return exchange(self, *values)

    def alone(self: Collectives, total: Any) -> Any:
        order.clear()
        yield from mean(self, total)
        order.append("end")

    Collectives.all_gather_numbers, Collectives.weighted_mean = noted, alone  # type: ignore[method-assign]
    result = aggregate(rank, num_workers, memory, folder, devices)
    return result | {
        "pinned": len(pinned), "released": released, "finished": {str(device) for device in finished}, "order": order[: order.index("end")],
    }  # fmt: skip


@pytest.mark.parametrize("devices", [["cuda:0"] * 3, ["cuda:1", "cuda:0", "cuda:1"]])
@pytest.mark.parametrize("refuse", [[], [0], [2], [0, 1, 2]])
def test_workers_on_a_gpu_share_its_memory_or_all_use_host_memory(
    run_distributed: Any, tmp_path: Path, devices: list[str], refuse: list[int]
) -> None:
    results = run_distributed(aggregate_like_gpus, 3, devices, refuse)
    assert_mean(results)
    for rank, result in enumerate(results):
        assert result["finished"] == {devices[rank]}
        # No row is read before its GPU has written it; no worker continues before all rows have been read.
        assert [before for before, what in pairwise(result["order"]) if what == "exchange"] == ["finish", "finish"]
        # Nor does any pass a barrier before its GPU has written what others then read.
        assert {before for before, what in pairwise(result["order"]) if what == "barrier"} <= {"finish"}
        assert result["pinned"] == bool(refuse)
        if refuse:
            assert result["note"].startswith("CUDA IPC isn't permitted here (")
            assert result["note"].endswith(
                "host memory, which can't be pinned either" if rank == 1 else "memory, pinned"
            )
            leader = devices.index(devices[rank])
            has_memory = rank not in refuse and leader not in refuse
            assert result["released"] == [rank == leader] * has_memory
        else:
            assert (result["note"], result["released"]) == ("", [])
    # A barrier before and after the leaders' all-reduce, which several domains need.
    several = len(set(devices)) > 1 and not refuse
    assert [result["calls"]["barrier"] for result in results] == [1 + 2 * several] * 3


class Driver:
    """Answers like libcuda: memory at 4096, of which no handle is given."""

    def __init__(self, allocation: int):
        self.allocation, self.freed = allocation, list[int]()

    def cuMemAlloc_v2(self, pointer: Any, size: ctypes.c_size_t) -> int:
        self.size = size.value
        if self.allocation == 0:
            pointer._obj.value = 4096
        return self.allocation

    def cuIpcGetMemHandle(self, handle: Any, pointer: ctypes.c_uint64) -> int:
        return 801

    def cuMemFree_v2(self, pointer: ctypes.c_uint64) -> int:
        self.freed.append(pointer.value)
        return 0

    def cuGetErrorString(self, code: int, message: Any) -> int:
        message._obj.value = b"operation not supported" if code == 801 else None
        return 0


@pytest.mark.parametrize(
    ("allocation", "error", "message", "freed"),
    [
        (0, cuda_ipc.NotPermitted, "^operation not supported$", [4096]),
        (2, UserError, r"^cuda:1: 0\.50 GiB are free, its sites' parameters need 2\.00 GiB; use fewer sites", []),
        (999, cuda_ipc.NotPermitted, "^CUDA error 999$", []),
    ],
)
def test_memory_that_is_refused_is_freed_and_the_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, allocation: int, error: type[Exception], message: str, freed: list[int]
) -> None:
    driver = Driver(allocation)
    monkeypatch.setattr(cuda_ipc, "_driver", lambda: driver)
    monkeypatch.setattr(cuda_ipc, "ensure_context", lambda device: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**34))
    with pytest.raises(error, match=message):
        cuda_ipc.allocate((2**10, 2**19), torch.device("cuda:1"))
    assert (driver.size, driver.freed) == (2**31, freed)


@pytest.mark.parametrize(("values", "blocks"), [(1, 1), (2**19, 1), (2**19 + 1, 2), (3 * 2**19, 3)])
def test_memory_is_shared_in_blocks_of_its_own(monkeypatch: pytest.MonkeyPatch, values: int, blocks: int) -> None:
    """A block has 2 MiB, which are 2^19 float32 values."""
    driver = Driver(allocation=999)
    monkeypatch.setattr(cuda_ipc, "_driver", lambda: driver)
    monkeypatch.setattr(cuda_ipc, "ensure_context", lambda device: None)
    with pytest.raises(cuda_ipc.NotPermitted):
        cuda_ipc.allocate((1, values), torch.device("cuda:1"))
    assert driver.size == blocks * 2**21
