"""How workers agree and aggregate. The only importer of `torch.distributed`.

The workers of a place aggregate through its memory: an array with a row for each worker, in which its model lives,
and a row for the server's state. Each worker reduces its slice of all rows, which no one else touches, and steps the
server's state with it; then all read the result. A place is a GPU, whose memory its workers see through CUDA's
interprocess handles, or the machine's memory, for sites on the CPU. NCCL alone would refuse two workers on one GPU.
Where there are several places, one worker of each, its leader, sums over all of them in between. Small objects travel
over gloo.
"""

import contextlib
import datetime
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scaling_fl import cuda_memory
from scaling_fl.errors import JobFailed, PeerLost
from scaling_fl.memory import SharedMemory

# Only a backstop: the launcher sees dead workers at once. Sites of unequal speed may wait for each other long.
_TIMEOUT = datetime.timedelta(hours=6)

# float32 values. On CPUs 1 MiB: what a core's cache holds while N rows are added into it; on GPUs, where each piece
# costs the launch of N kernels, 16 MiB.
_PIECE = {"cpu": 2**18, "cuda": 2**22}


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

    `row`: this worker's row (size,), in which it leaves its weighted sum; `state`: the server's rows (1 + moments, size),
    parameters first, once for each place; `part`: the slice of the state that this worker reduces and updates; `note`: what the user should know.
    """

    def __init__(
        self,
        rank: int,
        devices: Sequence[str],
        size: int,
        memory: SharedMemory,
        rendezvous: Path,
        num_moments: int = 0,
        on_wait: Callable[[bool], None] = lambda waiting: None,
    ):
        """`devices`: every worker's. `memory` is used unless all workers have GPUs that permit to share theirs.
        `num_moments`: rows that the server's optimiser needs.

        `on_wait` is told when this worker begins to wait for others, and when that is over.
        """
        self._on_wait, self._num_moments = on_wait, num_moments
        # One machine: they need no other interface, and must not depend on what the hostname resolves to.
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", _loopback())
        self.rank, self.num_workers, self.note = rank, len(devices), ""
        with self._collective():
            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=len(devices), timeout=_TIMEOUT
            )
        self._gpu = torch.device(devices[rank]) if devices[rank].startswith("cuda") else None
        rows = self._gpu_rows(devices, size) if self._gpu is not None else None
        if rows is None:
            places = ["host"] * len(devices) if self._gpu is not None else devices
            rows = self._host_rows(places, size, memory)
        else:
            places = devices
        self._members = [other for other, place in enumerate(places) if place == places[rank]]
        me, count = self._members.index(rank), len(self._members)
        self._rows, self.row, self.state = rows[:count], rows[me], rows[count : count + 1 + num_moments]
        bounds = [size * i // count for i in range(count + 1)]
        self.part = slice(bounds[me], bounds[me + 1])
        leaders = [places.index(place) for place in dict.fromkeys(places)]
        self.is_leader = rank in leaders
        self._sum: torch.Tensor | None = None
        self._leaders: Any = None
        if len(leaders) > 1:
            self._sum = rows[-1]
            with self._collective():
                self._leaders = dist.new_group(leaders, _TIMEOUT, "nccl" if rows.is_cuda else "gloo")

    def _gpu_rows(self, devices: Sequence[str], size: int) -> torch.Tensor | None:
        """Memory of this worker's GPU that all of its workers see; None, on every worker, if one of them may not."""
        assert self._gpu is not None
        leader = devices.index(str(self._gpu))
        shape = (self._num_rows(devices, str(self._gpu)), size)
        rows, handle, refusal = None, b"", ""
        if leader == self.rank:
            try:
                rows, handle = cuda_memory.allocate(shape, self._gpu)
            except cuda_memory.NotPermitted as error:
                refusal = str(error)
        handle = self.gather(handle)[leader]
        if handle and leader != self.rank:
            try:
                rows = cuda_memory.attach(handle, shape, self._gpu)
            except cuda_memory.NotPermitted as error:
                refusal = str(error)
        refusals = list(filter(None, self.gather(refusal)))
        if refusals:
            if rows is not None and leader != self.rank:
                cuda_memory.release(rows, allocated=False)
            self.wait()
            if rows is not None and leader == self.rank:
                cuda_memory.release(rows, allocated=True)
            self.note = f"CUDA IPC isn't permitted here ({refusals[0]}): sites aggregate through host memory"
            return None
        return rows

    def _host_rows(self, places: Sequence[str], size: int, memory: SharedMemory) -> torch.Tensor:
        """The rows of this worker's place in the machine's memory, in which all places stand one after another."""
        counts = {place: self._num_rows(places, place) for place in places}
        everything = torch.from_numpy(memory.floats(sum(counts.values()), size))
        if self._gpu is not None:
            self.note += ", pinned" if cuda_memory.pin(everything, self._gpu) else ", which can't be pinned either"
        mine = places[self.rank]
        first = sum(counts[place] for place in list(counts)[: list(counts).index(mine)])
        return everything[first : first + counts[mine]]

    def _num_rows(self, places: Sequence[str], place: str) -> int:
        """For the place's workers, the server's state, and the sum over all places if there are several."""
        return places.count(place) + 1 + self._num_moments + (len(set(places)) > 1)

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
        with self._collective():
            dist.all_reduce(table)
        return table

    def wait(self) -> None:
        """Until every worker is here. What was written to shared memory before it is seen after it."""
        self._finish()
        with self._collective():
            dist.barrier()

    def _finish(self) -> None:
        """Until this worker's GPU has done what it was told."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)

    def mean(self, total: WeightedSum) -> Iterator[tuple[slice, torch.Tensor]]:
        """Example-weighted mean of all sites' deltas: this worker's `part` of it, in pieces that fit into a cache.

        McMahan et al. 2017, algorithm 1: Σ n_k / n × delta_k. Rows are added in rank order, so that the
        result doesn't depend on who comes first. A piece is valid until the next one. After the last one all workers
        have come to the end: rows may be written and the state read again. Raises `JobFailed` there, on every worker,
        if a delta isn't finite.
        """
        if total.value is not None and total.value.data_ptr() != self.row.data_ptr():
            self.row.copy_(total.value)
        self._finish()
        accounts = self.exchange(total.weight, total.scale)
        weight = sum(weight for weight, _ in accounts)
        terms = [
            (row, accounts[member][1] / weight)
            for row, member in zip(self._rows, self._members, strict=True)
            if accounts[member][0] > 0
        ]
        sums = [torch.zeros((), device=self.row.device)]
        for piece, delta in self._reduced(terms) if self._leaders is None else self._reduced_everywhere(terms):
            sums.append(delta.sum())
            yield piece, delta
        finite = torch.isfinite(torch.stack(sums)).all().item()
        self._finish()
        if not all(others for (others,) in self.exchange(finite)):
            own = total.sites if total.value is not None and not torch.isfinite(self.row.sum()) else []
            bad = sorted(site for sites in self.gather(own) for site in sites)
            raise JobFailed(
                f"the parameters of site {' or '.join(map(str, bad))} are no longer finite numbers after local "
                "training; lower learning_rate, and look for broken texts or labels"
            )

    def _reduced(self, terms: list[tuple[torch.Tensor, float]]) -> Iterator[tuple[slice, torch.Tensor]]:
        """Σ factor × row over the rows of this place."""
        length = _PIECE[self.row.device.type]
        buffer = torch.empty(length, device=self.row.device)
        for start in range(self.part.start, self.part.stop, length):
            piece = slice(start, min(start + length, self.part.stop))
            delta = buffer[: piece.stop - piece.start]
            if not terms:
                delta.zero_()
            for number, (row, factor) in enumerate(terms):
                if number == 0:
                    torch.mul(row[piece], factor, out=delta)
                else:
                    delta.add_(row[piece], alpha=factor)
            yield piece, delta

    def _reduced_everywhere(self, terms: list[tuple[torch.Tensor, float]]) -> Iterator[tuple[slice, torch.Tensor]]:
        """The same over all places: one collective, of the leaders."""
        assert self._sum is not None
        for piece, delta in self._reduced(terms):
            self._sum[piece] = delta
        self.wait()
        if self.is_leader:
            with self._collective():
                dist.all_reduce(self._sum, group=self._leaders)
        self.wait()
        length = _PIECE[self.row.device.type]
        for start in range(self.part.start, self.part.stop, length):
            piece = slice(start, min(start + length, self.part.stop))
            yield piece, self._sum[piece]

    @contextlib.contextmanager
    def _collective(self) -> Iterator[None]:
        """Tell waiting from work, and a broken connection from a worker's own failure."""
        self._on_wait(True)
        try:
            yield
        except RuntimeError as error:  # torch.distributed's errors are RuntimeErrors
            raise PeerLost(f"the connection to another worker broke: {error}") from error
        finally:
            self._on_wait(False)

    def leave(self) -> None:
        """End the connections; all workers come here."""
        dist.destroy_process_group()


def _loopback() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
