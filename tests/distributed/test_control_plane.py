import datetime
import os
import re
import socket
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.distributed as dist

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.control_plane import ControlPlane
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import PeerLost, UserError


def lose_a_peer(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> str:
    # In a URL, each of these characters would end the path.
    collectives = Collectives(rank, ["cpu"] * num_workers, 1, memory, f"file://{folder}/a?b#c;d")
    assert (folder / "a?b#c;d").exists()
    collectives.barrier()
    if rank == 1:
        dist.destroy_process_group()
        return "left"
    try:
        collectives.barrier()
    except PeerLost:
        return "lost"
    return "no error"


def refuse(rank: int, num_workers: int, memory: SharedMemory, folder: Path, message: str, kind: str) -> str:
    """In a worker process: the error if torch.distributed fails with an error of this kind."""
    collectives = Collectives(rank, ["cpu"] * num_workers, 1, memory, f"file://{folder}/rendezvous")

    def barrier() -> None:
        raise getattr(torch, kind)(message)

    torch.DistBackendError = dist.DistBackendError  # type: ignore[attr-defined]
    dist.barrier = barrier
    with pytest.raises((UserError, PeerLost, RuntimeError)) as error:
        collectives.barrier()
    return f"{type(error.value).__name__}: {error.value}"


def leave(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> dict[str, Any]:
    """Leave the group; worker 0 has something to do before."""
    waits: list[bool] = []
    collectives = Collectives(
        rank, ["cpu"] * num_workers, 1, memory, f"file://{folder}/rendezvous", on_wait=waits.append
    )
    collectives.barrier()
    waits.clear()
    if rank == 0:
        time.sleep(0.5)
        (folder / "exported").touch()
    collectives.close()
    return {"exported": (folder / "exported").exists(), "waits": waits, "group": dist.is_initialized()}


def test_workers_wait_at_the_end_for_the_one_that_exports(run_distributed: Any) -> None:
    for found in run_distributed(leave, 3):
        assert found == {"exported": True, "waits": [True, False] * 2, "group": False}


# As PyTorch reports NCCL's error.
NO_ROOM = """NCCL error in: NCCLUtils.hpp:268, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-1YsMbG (size 9637888)"""


@pytest.mark.parametrize(
    ("message", "kind", "expected"),
    [
        (NO_ROOM, "DistBackendError", r"UserError: NCCL can't allocate 9\.2 MiB for .*: /dev/shm has \d+ MiB, of which \d+ MiB are free, expected 1024 MiB; set SHM_SIZE=1g"),
        ("NCCL error: remote process exited", "DistBackendError", "PeerLost: the connection to another worker broke: NCCL error"),
        ("NCCL error: unhandled cuda error, an illegal memory access", "DistBackendError", "DistBackendError: NCCL error"),
        ("NCCL error: internal error, Cuda failure 2 'out of memory'", "DistBackendError", "DistBackendError: NCCL error"),
        ("NCCL error: internal error, Failed to CUDA calloc 24 bytes", "DistBackendError", "DistBackendError: NCCL error"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", "OutOfMemoryError", "OutOfMemoryError: CUDA out of memory"),
        ("CUDA error: an illegal memory access", "AcceleratorError", "AcceleratorError: CUDA error: an illegal"),
    ],
)  # fmt: skip
def test_an_error_in_a_collective_is_that_of_its_cause(
    run_distributed: Any, message: str, kind: str, expected: str
) -> None:
    (error,) = run_distributed(refuse, 1, message, kind)
    assert re.match(expected, error)


@pytest.mark.parametrize("interface", [None, "eth77"])
def test_network_interfaces_that_the_user_names_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interface: str | None
) -> None:
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", loopback)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    ControlPlane(0, ["cpu"], f"file://{tmp_path}/rendezvous", interface=interface).close()
    assert [os.environ[f"{library}_SOCKET_IFNAME"] for library in ("GLOO", "NCCL")] == [loopback, "ib0"]
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    ControlPlane(0, ["cpu"], f"file://{tmp_path}/again", interface=interface).close()
    assert os.environ["NCCL_SOCKET_IFNAME"] == (interface or loopback)


def test_nodes_are_not_tied_to_the_loopback_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system doesn't say which interface leads to the other nodes, the libraries choose."""
    for library in ("GLOO", "NCCL"):
        monkeypatch.delenv(f"{library}_SOCKET_IFNAME", raising=False)
    ControlPlane(0, ["cpu"], f"file://{tmp_path}/rendezvous", nodes=[0]).close()
    assert not os.environ.keys() & {"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"}


def test_a_lost_connection_raises_peer_lost(run_distributed: Any) -> None:
    assert run_distributed(lose_a_peer, 2) == ["lost", "left"]


def test_numbers_arrive_bitwise(tmp_path: Path) -> None:
    """Weights, and the sizes of messages above 16 MiB, of which float32 knows every second one."""
    plane = ControlPlane(0, ["cpu"], f"file://{tmp_path}/rendezvous")
    numbers = [2.0**24 + 1, 1 / 3, 0.0, float("inf"), 1e-300]
    assert plane.all_gather_numbers(*numbers) == [numbers]
    plane.close()


def test_workers_wait_for_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For slow sites, or one in a debugger; torch's own limits are 5 and 30 minutes. Leaders of domains wait as long."""
    joined, grouped = Mock(), Mock()
    monkeypatch.setattr(dist, "init_process_group", joined)
    monkeypatch.setattr(dist, "new_group", grouped)
    Collectives(0, ["cpu:0", "cpu:1"], 16, SharedMemory(), f"file://{tmp_path}/rendezvous")
    limits = [joined.call_args.kwargs["timeout"], joined.call_args.kwargs["store"].timeout, grouped.call_args.args[1]]
    assert all(limit >= datetime.timedelta(days=3) for limit in limits)
