"""How workers agree and aggregate. The only importer of `torch.distributed`.

The workers of one machine aggregate through its memory: a shared float32 array with one row per worker and one
row for the server's state. Each worker fills its row, then reduces its slice of all rows, which no one else
touches, and steps the server's state with it; then all read the result. Small objects travel over gloo. That holds for CPUs and for any number of
sites per GPU, where NCCL would refuse the second.
"""

import contextlib
import datetime
import os
import pickle
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

_PIECE = 2**18  # float32 values, 1 MiB: what a core's cache holds while N rows are added into it


class WeightedSum:
    """Σ weight × delta over the sites that one worker trains in a round: `scale` × `value`.

    A delta lives in the buffer in which the worker's next site trains. With `single`, there is no next site,
    and the sum takes that buffer over as it is, instead of a copy.
    """

    def __init__(self, single: bool):
        self.single, self.weight, self.scale = single, 0.0, 0.0
        self.value: torch.Tensor | None = None
        self.sites: list[int] = []

    def add(self, site: int, delta: torch.Tensor, weight: float) -> None:
        """Add the delta (size,) of a site."""
        if self.single:
            self.value, self.scale = delta, weight
        elif self.value is None:
            self.value, self.scale = delta.mul(weight), 1.0
        else:
            self.value.add_(delta, alpha=weight)
        self.weight += weight
        self.sites.append(site)


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

    def exchange(self, *values: float) -> list[list[float]]:
        """These numbers of every worker, by rank, to every worker."""
        table = torch.zeros(self.num_workers, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values)
        return self._share(table).tolist()

    def gather(self, value: Any) -> list[Any]:
        """`value` of every worker, by rank, to every worker."""
        data = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = [int(size) for (size,) in self.exchange(len(data))]
        table = torch.zeros(self.num_workers, max(sizes), dtype=torch.uint8)
        table[self.rank, : len(data)] = data
        rows = self._share(table).numpy()
        return [pickle.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def _share(self, table: torch.Tensor) -> torch.Tensor:
        """A table of which each worker knows its own row, and has zeros in the others, complete.

        The sum does that, too, and in gloo it is ten times faster than gathering where workers outnumber the cores:
        a gather passes every row on one after another, and each step waits until the next worker has a core.
        """
        with _collective():
            dist.all_reduce(table)
        return table

    def wait(self) -> None:
        """Until every worker is here. What was written to shared memory before it is seen after it."""
        with _collective():
            dist.barrier()

    def mean(self, total: WeightedSum) -> Iterator[tuple[slice, torch.Tensor]]:
        """Example-weighted mean of all sites' deltas: this worker's `part` of it, in pieces that fit into a cache.

        McMahan et al. 2017, algorithm 1: Σ n_k / n × delta_k. Rows are added in rank order, so that the
        result doesn't depend on who comes first. A piece is valid until the next one. After the last one all workers
        have come to the end: rows may be written and the state read again. Raises `JobFailed` there, on every worker,
        if a delta isn't finite.
        """
        if total.value is not None and total.value.data_ptr() != self.row.data_ptr():
            self.row.copy_(total.value)
        accounts = self.exchange(total.weight, total.scale)
        weight = sum(weight for weight, _ in accounts)
        terms = [(row, scale / weight) for row, (own, scale) in zip(self._rows, accounts, strict=True) if own > 0]
        buffer, sums = torch.empty(_PIECE), [torch.zeros(())]
        for start in range(self.part.start, self.part.stop, _PIECE):
            piece = slice(start, min(start + _PIECE, self.part.stop))
            delta = buffer[: piece.stop - piece.start]
            (first, factor), *others = terms
            torch.mul(first[piece], factor, out=delta)
            for row, factor in others:
                delta.add_(row[piece], alpha=factor)
            sums.append(delta.sum())
            yield piece, delta
        if not all(finite for (finite,) in self.exchange(torch.isfinite(torch.stack(sums)).all().item())):
            own = total.sites if total.value is not None and not torch.isfinite(self.row.sum()) else []
            bad = sorted(site for sites in self.gather(own) for site in sites)
            raise JobFailed(
                f"the parameters of site {' or '.join(map(str, bad))} are no longer finite numbers after local "
                "training; lower learning_rate, and look for broken texts or labels"
            )

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
