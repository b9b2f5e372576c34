import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
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
        collectives.close()
        return "left"
    try:
        collectives.barrier()
    except PeerLost:
        return "lost"
    return "no error"


def refuse(rank: int, num_workers: int, memory: SharedMemory, folder: Path, message: str) -> str:
    """In a worker process: the error if torch.distributed fails with `message`."""
    collectives = Collectives(rank, ["cpu"] * num_workers, 1, memory, f"file://{folder}/rendezvous")

    def barrier() -> None:
        raise dist.DistBackendError(message)

    dist.barrier = barrier
    with pytest.raises((UserError, PeerLost)) as error:
        collectives.barrier()
    return f"{type(error.value).__name__}: {error.value}"


# As PyTorch reports NCCL's error.
NO_ROOM = """NCCL error in: NCCLUtils.hpp:268, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.21.5
ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.
Last error:
Error while creating shared memory segment /dev/shm/nccl-1YsMbG (size 9637888)"""


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (NO_ROOM, r"UserError: NCCL can't allocate 9\.2 MiB for .*: /dev/shm has \d+ MiB, of which \d+ MiB are free, expected 1024 MiB; set SHM_SIZE=1g"),
        ("NCCL error: remote process exited", "PeerLost: the connection to another worker broke: NCCL error"),
    ],
)  # fmt: skip
def test_too_little_shared_memory_for_nccl_is_a_user_error(run_distributed: Any, message: str, expected: str) -> None:
    (error,) = run_distributed(refuse, 1, message)
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
