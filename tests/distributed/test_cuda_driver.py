"""Calls of CUDA's driver through its C interface, by a library that has files in the place of a GPU's memory."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.control_plane import ControlPlane
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError
from tests.distributed.aggregation import aggregate, assert_mean

SOURCE = Path(__file__).with_name("cuda_driver.c")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "g++", "clang"))), None)
ALLOCATED, ATTACHED = 1, 2

pytestmark = pytest.mark.skipif(COMPILER is None, reason="this machine has no C compiler")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tmp_path_factory.mktemp("driver") / "libcuda.so"
    command = [str(COMPILER), "-x", "c", "-shared", "-fPIC", "-o", str(built), str(SOURCE)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return built


def use(driver: Path) -> Any:
    """Make this process call the library `driver`, and see its memory as the CPU's. Returns the library."""

    def tensor(pointer: ctypes.c_uint64, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        values = (ctypes.c_float * torch.Size(shape).numel()).from_address(pointer.value)
        return torch.frombuffer(values, dtype=torch.float32).view(shape)

    os.environ["CUDA_DRIVER_FOLDER"] = str(driver.parent)
    cuda_ipc._driver = lambda: ctypes.CDLL(str(driver))
    cuda_ipc._tensor = tensor
    cuda_ipc.ensure_context = lambda device: None
    torch.cuda.synchronize = lambda device: None
    torch.cuda.mem_get_info = lambda device: (2**30, 2**31)
    return ctypes.CDLL(str(driver))


def aggregate_through_driver(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, driver: Path, devices: list[str]
) -> dict[str, Any]:
    library = use(driver)
    result = aggregate(rank, num_workers, memory, folder, devices)
    mapped = library.number_mapped(ALLOCATED), library.number_mapped(ATTACHED)
    return result | {"mapped": mapped}


@pytest.mark.parametrize("devices", [["cuda:0"] * 3, ["cuda:1", "cuda:0", "cuda:1"]])
def test_workers_aggregate_in_memory_that_the_driver_shares(
    run_distributed: Any, driver: Path, devices: list[str]
) -> None:
    results = run_distributed(aggregate_through_driver, 3, driver, devices)
    assert_mean(results)
    for rank, result in enumerate(results):
        assert result["note"] == ""
        first = devices.index(devices[rank]) == rank
        assert result["mapped"] == ((1, 0) if first else (0, 1))


def pass_memory_on(rank: int, num_workers: int, memory: SharedMemory, folder: Path, driver: Path) -> dict[str, Any]:
    library, device, shape = use(driver), torch.device("cuda:0"), (3, 2**19 + 5)
    plane = ControlPlane(rank, ["cpu", "cpu"], f"file://{folder}/rendezvous")
    found: dict[str, Any] = {}
    if rank == 0:
        rows, handle = cuda_ipc.allocate(shape, device)
        found["zeroed"] = not rows.any().item()
        with pytest.raises(cuda_ipc.NotPermitted, match=r"^invalid device context$"):
            cuda_ipc.attach(handle, shape, device)  # a process can't open its own
        plane.all_gather(handle)
    else:
        handle = plane.all_gather(b"")[0]
        with pytest.raises(cuda_ipc.NotPermitted, match=r"^invalid argument$"):
            cuda_ipc.attach(handle[:-1] + b"\0", shape, device)
        rows = cuda_ipc.attach(handle, shape, device)
        rows[2, -1] = 7  # the last value, in the last block
    plane.barrier()
    found["last"] = rows[2, -1].item()
    plane.barrier()
    before = library.number_mapped(ALLOCATED), library.number_mapped(ATTACHED)
    cuda_ipc.release(rows, allocated=rank == 0)
    found["mapped"] = before, (library.number_mapped(ALLOCATED), library.number_mapped(ATTACHED))
    plane.close()
    return found


def test_what_one_process_allocates_another_attaches_by_its_handle(run_distributed: Any, driver: Path) -> None:
    first, second = run_distributed(pass_memory_on, 2, driver)
    assert first == {"zeroed": True, "last": 7, "mapped": ((1, 0), (0, 0))}
    assert second == {"last": 7, "mapped": ((0, 1), (0, 0))}


def allocate_too_much(rank: int, num_workers: int, memory: SharedMemory, folder: Path, driver: Path) -> list[Any]:
    use(driver)
    with pytest.raises(UserError) as error:
        cuda_ipc.allocate((2**10, 2**18 + 1), torch.device("cuda:1"))
    host = torch.zeros(1000)
    return [
        str(error.value),
        cuda_ipc.pin(host, torch.device("cuda:1")),
        cuda_ipc.pin(host[:0], torch.device("cuda:1")),
    ]


def test_too_little_memory_and_pinning_are_what_the_driver_says(run_distributed: Any, driver: Path) -> None:
    ((message, pinned, nothing_pinned),) = run_distributed(allocate_too_much, 1, driver)
    assert message.startswith("cuda:1: 1.00 GiB are free, its sites' parameters need 1.00 GiB; use fewer sites")
    assert (pinned, nothing_pinned) == (True, False)
