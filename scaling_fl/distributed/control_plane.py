"""The control plane: workers exchange small objects over gloo, wait for each other, and notice a lost peer."""

import contextlib
import datetime
import io
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from scaling_fl.distributed.messages import SafeUnpickler
from scaling_fl.distributed.shared_memory import nccl_shared_memory_shortage
from scaling_fl.errors import PeerLost, UserError

# Only a backstop: the launcher notices dead workers at once. Workers may wait long for slow sites, or over a weekend for
# one that is held in a debugger.
TIMEOUT = datetime.timedelta(days=7)
_OF_THE_DEVICE = (torch.OutOfMemoryError, torch.AcceleratorError)  # RuntimeErrors that no other worker has caused
# In NCCL's words for errors of this worker's GPU.
_OF_NCCL_ON_THE_DEVICE = ("unhandled cuda error", "out of memory", "Failed to CUDA")


class ControlPlane:
    """This worker's view of all workers of the job: one gloo process group.

    `transport_note`: why a slower transport is in use, for the user; empty if none is.
    """

    def __init__(
        self,
        rank: int,
        devices: Sequence[str],
        rendezvous: str,
        on_wait: Callable[[bool], None] = lambda waiting: None,
        nodes: Sequence[int] = (),
        interface: str | None = None,
    ):
        """Join the process group. The arguments are those of `Collectives`."""
        self._on_wait = on_wait
        # One machine needs the loopback interface only; nothing should depend on what the hostname resolves to.
        for library in ("GLOO", "NCCL"):
            if known := interface or (None if nodes else _loopback()):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", known)
        self._nodes = list(nodes) or [0] * len(devices)
        self.rank, self.num_workers, self.transport_note = rank, len(devices), ""
        meeting: dict[str, Any] = {"init_method": rendezvous}
        if (path := rendezvous.removeprefix("file://")) != rendezvous:
            # Not as a URL, in which ? or # would end the path.
            meeting = {"store": dist.FileStore(path, len(devices))}  # type: ignore[attr-defined]
            meeting["store"].set_timeout(TIMEOUT)
        with self._collective():
            dist.init_process_group("gloo", **meeting, rank=rank, world_size=len(devices), timeout=TIMEOUT)
        self._gpu = torch.device(devices[rank]) if devices[rank].startswith("cuda") else None

    def all_gather_numbers(self, *values: float) -> list[list[float]]:
        """All-gather numbers: return every worker's `values`, by rank."""
        table = torch.zeros(self.num_workers, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        return self._all_gather_rows(table).tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """All-gather objects: return every worker's `value`, by rank. See `messages` for the permitted types."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for (size,) in self.all_gather_numbers(len(data))]
        table = torch.zeros(self.num_workers, max(sizes), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        rows = self._all_gather_rows(table).numpy()
        return [SafeUnpickler(io.BytesIO(row[:size].tobytes())).load() for row, size in zip(rows, sizes, strict=True)]

    def _all_gather_rows(self, table: torch.Tensor) -> torch.Tensor:
        """Complete, in place, a table in which each worker has filled its own row and left zeros in the others.

        By all-reduce: if workers outnumber cores, gloo's all-reduce is ten times faster than its all-gather, which passes
        the rows on one by one, and each step waits until the next worker gets a core.
        """
        with self._collective():
            dist.all_reduce(table)
        return table

    def barrier(self) -> None:
        """Wait for all workers. What any of them wrote to shared memory before is visible afterwards."""
        self._synchronise_gpu()
        with self._collective():
            dist.barrier()

    def _synchronise_gpu(self) -> None:
        """Wait until this worker's GPU has finished its queued work."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """Report waiting to `on_wait`; turn torch.distributed's errors into `PeerLost` or `UserError`."""
        self._on_wait(True)
        try:
            yield
        except _OF_THE_DEVICE:
            raise
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            if any(sign in str(error) for sign in _OF_NCCL_ON_THE_DEVICE):
                raise
            if shortage := nccl_shared_memory_shortage(str(error)):
                raise UserError(shortage) from error
            raise PeerLost(f"the connection to another worker broke: {error}") from error
        finally:
            self._on_wait(False)

    def close(self) -> None:
        """Leave the process group. All workers must call this: it waits until all of them have."""
        self.barrier()
        with self._collective():
            dist.destroy_process_group()


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
