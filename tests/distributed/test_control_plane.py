import re
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from scaling_fl.distributed.collectives import Collectives
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


def test_a_lost_connection_raises_peer_lost(run_distributed: Any) -> None:
    assert run_distributed(lose_a_peer, 2) == ["lost", "left"]
