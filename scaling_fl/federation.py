"""How workers agree and aggregate. The only importer of `torch.distributed`.

The workers of one machine aggregate through its memory: a shared float32 array with one row per worker and one
row for the server's state. Each worker fills its row, then reduces its slice of all rows, which no one else
touches; then all read the result. Small objects travel over gloo. That holds for CPUs and for any number of
sites per GPU, where NCCL would refuse the second.
"""

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaling_fl.errors import JobFailed, PeerLost
from scaling_fl.memory import SharedMemory

# Only a backstop: the launcher sees dead workers at once. Sites of unequal speed may wait for each other long.
_TIMEOUT = datetime.timedelta(hours=6)


class WeightedSum:
    """Σ weight × delta over the sites that one worker trains in a round.

    A delta lives in the buffer in which the worker's next site trains. With `single`, there is no next site,
    and the sum takes that buffer over instead of a copy.
    """

    def __init__(self, single: bool):
        self.single, self.weight = single, 0.0
        self.value: torch.Tensor | None = None
        self.not_finite: list[int] = []  # sites whose delta holds NaN or infinity

    def add(self, site: int, delta: torch.Tensor, weight: float) -> None:
        """Add the delta (size,) of a site."""
        if not torch.isfinite(delta.sum()):
            self.not_finite.append(site)
        if self.value is None:
            self.value = delta.mul_(weight) if self.single else delta.mul(weight)
        else:
            self.value.add_(delta, alpha=weight)
        self.weight += weight


class Federation:
    """The workers of this job, seen from one of them.

    `row`: this worker's row (size,), in which it leaves its weighted sum; `state`: the server's row (size,),
    one for all; `part`: the slice of the state that this worker reduces and updates.
    """

    def __init__(self, rank: int, num_workers: int, size: int, memory: SharedMemory, rendezvous: Path):
        # One machine: gloo needs no other interface, and must not depend on what the hostname resolves to.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        self.rank, self.num_workers = rank, num_workers
        rows = torch.from_numpy(memory.floats(num_workers + 1, size))
        self._rows, self.state = rows[:-1], rows[-1]
        self.row = rows[rank]
        bounds = [size * i // num_workers for i in range(num_workers + 1)]
        self.part = slice(bounds[rank], bounds[rank + 1])
        with _collective():
            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_workers, timeout=_TIMEOUT
            )

    def gather(self, value: Any) -> list[Any]:
        """`value` of every worker, by rank, to every worker."""
        values: list[Any] = [None] * self.num_workers
        with _collective():
            dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until every worker is here. What was written to shared memory before it is seen after it."""
        with _collective():
            dist.barrier()

    def mean(self, total: WeightedSum) -> torch.Tensor:
        """Example-weighted mean of all sites' deltas: this worker's `part` of it, in a fresh tensor.

        McMahan et al. 2017, algorithm 1: Σ n_k / n × delta_k. Rows are added in rank order, so that the
        result doesn't depend on who comes first. Raises `JobFailed` on every worker where a delta isn't finite.
        """
        if total.value is None:
            self.row.zero_()
        elif total.value.data_ptr() != self.row.data_ptr():
            self.row.copy_(total.value)
        accounts = self.gather((total.weight, total.not_finite))
        bad = sorted(site for _, sites in accounts for site in sites)
        if bad:
            raise JobFailed(
                f"the parameters of site {', '.join(map(str, bad))} are no longer finite numbers after local "
                "training; lower learning_rate, and look for broken texts or labels"
            )
        result = torch.zeros_like(self._rows[0, self.part])
        for row in self._rows:
            result += row[self.part]
        return result.div_(sum(weight for weight, _ in accounts))

    def leave(self) -> None:
        """End the connections; all workers come here."""
        dist.destroy_process_group()


@contextlib.contextmanager
def _collective() -> Iterator[None]:
    """Tell a broken connection from a worker's own failure."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
        raise PeerLost(f"the connection to another worker broke: {error}") from error


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
