"""The control plane: how workers exchange small objects, wait for each other, and notice that one is gone."""

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

# Only a backstop: the launcher sees dead workers at once. Sites of unequal speed may wait for each other long, and for
# one that a debugger holds over the weekend.
TIMEOUT = datetime.timedelta(days=7)


class ControlPlane:
    """The workers of this job, seen from one of them: gloo over all of them."""

    def __init__(
        self,
        rank: int,
        devices: Sequence[str],
        rendezvous: str,
        on_wait: Callable[[bool], None] = lambda waiting: None,
        nodes: Sequence[int] = (),
        interface: str | None = None,
    ):
        """See `Collectives`."""
        self._on_wait = on_wait
        # On one machine they need no other interface, and nowhere should depend on what the hostname resolves to.
        for library in ("GLOO", "NCCL"):
            if known := interface or (None if nodes else _loopback()):
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", known)
        self._nodes = list(nodes) or [0] * len(devices)
        self.rank, self.num_workers, self.transport_note = rank, len(devices), ""
        with self._collective():
            dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=len(devices), timeout=TIMEOUT)
        self._gpu = torch.device(devices[rank]) if devices[rank].startswith("cuda") else None

    def all_gather_numbers(self, *values: float) -> list[list[float]]:
        """These numbers of every worker, by rank, to every worker."""
        table = torch.zeros(self.num_workers, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values)
        return self._all_gather_rows(table).tolist()

    def all_gather(self, value: Any) -> list[Any]:
        """`value` of every worker, by rank, to every worker."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for (size,) in self.all_gather_numbers(len(data))]
        table = torch.zeros(self.num_workers, max(sizes), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        rows = self._all_gather_rows(table).numpy()
        return [SafeUnpickler(io.BytesIO(row[:size].tobytes())).load() for row, size in zip(rows, sizes, strict=True)]

    def _all_gather_rows(self, table: torch.Tensor) -> torch.Tensor:
        """A table of which each worker knows its own row, and has zeros in the others, complete.

        The sum does that, too, and in gloo it is ten times faster than gathering where workers outnumber the cores:
        a gather passes every row on one after another, and each step waits until the next worker has a core.
        """
        with self._collective():
            dist.all_reduce(table)
        return table

    def barrier(self) -> None:
        """Until every worker is here. What was written to shared memory before it is seen after it."""
        self._synchronise_gpu()
        with self._collective():
            dist.barrier()

    def _synchronise_gpu(self) -> None:
        """Until this worker's GPU has done what it was told."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """Tell waiting from work, and a broken connection from a worker's own failure."""
        self._on_wait(True)
        try:
            yield
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            if lacking := nccl_shared_memory_shortage(str(error)):
                raise UserError(lacking) from error
            raise PeerLost(f"the connection to another worker broke: {error}") from error
        finally:
            self._on_wait(False)

    def close(self) -> None:
        """End the connections; all workers come here."""
        dist.destroy_process_group()


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
