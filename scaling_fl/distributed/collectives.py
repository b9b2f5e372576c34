"""How workers agree and aggregate. The only importer of `torch.distributed`.

The workers of a place aggregate through its memory: an array with a row for each worker, in which its model lives,
and a row for the server's state. Each worker reduces its slice of all rows, which no one else touches, and steps the
server's state with it; then all read the result. A place is a GPU, whose memory its workers see through CUDA's
interprocess handles, or the machine's memory, for sites on the CPU. NCCL alone would refuse two workers on one GPU.
Where there are several places, one worker of each, its leader, sums over all of them in between. Small objects travel
over gloo.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.control_plane import TIMEOUT, ControlPlane
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.distributed.weighted_sum import (
    CHUNK,
    MAX_DELTA,
    WeightedSum,
    accumulate,
    divergence_error,
    max_abs,
    to_float,
)


class Collectives(ControlPlane):
    """The workers of this job, seen from one of them.

    `worker_row`: this worker's row (size,), in which it leaves its weighted sum, float32 or, if that is in fixed point, int64;
    `state`: the server's rows (1 + moments, size), parameters first, once for each place; `owned_slice`: the slice of the state
    that this worker reduces and updates; `transport_note`: what the user should know.
    """

    def __init__(
        self,
        rank: int,
        devices: Sequence[str],
        size: int,
        memory: SharedMemory,
        rendezvous: str,
        num_moments: int = 0,
        on_wait: Callable[[bool], None] = lambda waiting: None,
        exact: bool = True,
        single_site: bool = True,
        nodes: Sequence[int] = (),
        interface: str | None = None,
    ):
        """`devices`: every worker's. `memory` is used unless all workers have GPUs that permit to share theirs.
        `rendezvous`: a URL, of a file or of a port of worker 0. `nodes`: every worker's, if there are several, which reach
        each other over the network's `interface`.
        `num_moments`: rows that the server's optimiser needs. `exact`: sums are in fixed point. `single_site`: no worker
        trains more than one site in a round.

        `on_wait` is told when this worker begins to wait for others, and when that is over.
        """
        super().__init__(rank, devices, rendezvous, on_wait, nodes, interface)
        self._num_moments = num_moments
        self._exact, self._single_site = exact, single_site
        self._width = 2 if exact and not single_site else 1  # float32 rows that a worker's row takes
        places = [f"{node} {device}" for node, device in zip(self._nodes, devices, strict=True)]
        rows = self._gpu_rows(places, size) if self._gpu is not None else None
        if rows is None:
            if self._gpu is not None:
                places = [f"{node} host" for node in self._nodes]
            rows = self._host_rows(places, size, memory)
        self._members = [other for other, place in enumerate(places) if place == places[rank]]
        me, count = self._members.index(rank), len(self._members)
        own, others = rows[: count * self._width], rows[count * self._width :]
        self._rows = own if self._width == 1 else _as_int64_rows(own)
        self.worker_row, self.state = self._rows[me], others[: 1 + num_moments]
        bounds = [size * i // count for i in range(count + 1)]
        self.owned_slice = slice(bounds[me], bounds[me + 1])
        leaders = [places.index(place) for place in dict.fromkeys(places)]
        self.is_leader = rank in leaders
        self._sum: torch.Tensor | None = None
        self._leaders: Any = None
        if len(leaders) > 1:
            self._sum = _as_int64_rows(rows[-2:])[0] if exact else rows[-1]
            with self._collective():
                self._leaders = dist.new_group(leaders, TIMEOUT, "nccl" if rows.is_cuda else "gloo")

    def _gpu_rows(self, places: Sequence[str], size: int) -> torch.Tensor | None:
        """Memory of this worker's GPU that all of its workers see; None, on every worker, if one of them may not."""
        assert self._gpu is not None
        leader = places.index(places[self.rank])
        shape = (self._num_rows(places, places[self.rank]), size)
        rows, handle, refusal = None, b"", ""
        if leader == self.rank:
            try:
                rows, handle = cuda_ipc.allocate(shape, self._gpu)
            except cuda_ipc.NotPermitted as error:
                refusal = str(error)
        handle = self.all_gather(handle)[leader]
        if handle and leader != self.rank:
            try:
                rows = cuda_ipc.attach(handle, shape, self._gpu)
            except cuda_ipc.NotPermitted as error:
                refusal = str(error)
        refusals = list(filter(None, self.all_gather(refusal)))
        if refusals:
            if rows is not None and leader != self.rank:
                cuda_ipc.release(rows, allocated=False)
            self.barrier()
            if rows is not None and leader == self.rank:
                cuda_ipc.release(rows, allocated=True)
            self.transport_note = f"CUDA IPC isn't permitted here ({refusals[0]}): sites aggregate through host memory"
            return None
        return rows

    def _host_rows(self, places: Sequence[str], size: int, memory: SharedMemory) -> torch.Tensor:
        """The rows of this worker's place in its node's memory, in which that one's places stand one after another."""
        here = [place for place, node in zip(places, self._nodes, strict=True) if node == self._nodes[self.rank]]
        counts = {place: self._num_rows(places, place) for place in here}
        everything = torch.from_numpy(memory.floats(sum(counts.values()), size))
        if self._gpu is not None:
            self.transport_note += (
                ", pinned" if cuda_ipc.pin(everything, self._gpu) else ", which can't be pinned either"
            )
        mine = places[self.rank]
        first = sum(counts[place] for place in list(counts)[: list(counts).index(mine)])
        return everything[first : first + counts[mine]]

    def _num_rows(self, places: Sequence[str], place: str) -> int:
        """For the place's workers, the server's state, and the sum over all places if there are several."""
        over_places = (1 + self._exact) * (len(set(places)) > 1)
        return places.count(place) * self._width + 1 + self._num_moments + over_places

    def broadcast_state(self) -> None:
        """Give worker 0's `state` to all places."""
        self.barrier()
        if self._leaders is not None and self.is_leader:
            with self._collective():
                dist.broadcast(self.state, 0, group=self._leaders)
        self.barrier()

    def model_buffer(self, device: torch.device) -> torch.Tensor:
        """Memory (size,) on `device` for the model of this worker: its row, if that is where its one delta goes."""
        if self._single_site and self.worker_row.device == device:
            return self.worker_row
        return torch.zeros(self.state.shape[1], device=device)

    def weighted_sum(self) -> WeightedSum:
        """An empty sum, for this worker's sites of a round."""
        return WeightedSum(self.worker_row, self._single_site)

    def weighted_mean(self, total: WeightedSum) -> Iterator[tuple[slice, torch.Tensor]]:
        """Weighted mean of all sites' deltas: this worker's `owned_slice` of it, in pieces that fit into a cache.

        McMahan et al. 2017, algorithm 1: Σ n_k / n × delta_k. Rows are added in rank order, so that even a sum of floats
        doesn't depend on who comes first. A piece is valid until the next one. After the last one all workers
        have come to the end: rows may be written and the state read again. Raises `JobFailed` there, on every worker,
        if a delta isn't finite, or too large for fixed point.
        """
        self._synchronise_gpu()
        scales = self.all_gather_numbers(total.scale)
        terms = [
            (row, scales[member][0])
            for row, member in zip(self._rows, self._members, strict=True)
            if scales[member][0] > 0
        ]
        limit = MAX_DELTA if self._exact else float("inf")
        extremes = [torch.tensor([0.0, *total.largest_delta.values()], device=self.worker_row.device).max()]
        for piece, delta in (
            self._reduce_in_domain(terms, extremes)
            if self._sum is None
            else self._reduce_across_domains(terms, extremes)
        ):
            extremes.append(max_abs(delta))
            yield piece, delta
        sound = (torch.stack(extremes) < limit).all().item()
        self._synchronise_gpu()
        if not all(others for (others,) in self.all_gather_numbers(sound)):
            bad = sorted(site for sites in self.all_gather(total.diverged_sites(limit)) for site in sites)
            raise divergence_error(bad, limit)

    def _reduce_in_domain(
        self, terms: list[tuple[torch.Tensor, float]], extremes: list[torch.Tensor], raw: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Σ scale × row over the rows of this place; `raw`: in fixed point, if that is what it is summed in.

        To `extremes` go the largest values of what is put into fixed point.
        """
        length = CHUNK[self.worker_row.device.type]
        buffer = torch.empty(length, device=self.worker_row.device, dtype=torch.int64 if self._exact else torch.float32)
        for start in range(self.owned_slice.start, self.owned_slice.stop, length):
            piece = slice(start, min(start + length, self.owned_slice.stop))
            summed = buffer[: piece.stop - piece.start]
            if not terms:
                summed.zero_()
            for number, (row, scale) in enumerate(terms):
                if row.dtype != summed.dtype:
                    extremes.append(max_abs(row[piece]))
                accumulate(summed, row[piece], scale, first=number == 0)
            yield piece, summed if raw else to_float(summed)

    def _reduce_across_domains(
        self, terms: list[tuple[torch.Tensor, float]], extremes: list[torch.Tensor]
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """The same over all places: one collective, of the leaders."""
        assert self._sum is not None
        for piece, summed in self._reduce_in_domain(terms, extremes, raw=True):
            self._sum[piece] = summed
        self.barrier()
        if self.is_leader:
            with self._collective():
                dist.all_reduce(self._sum, group=self._leaders)
        self.barrier()
        length = CHUNK[self.worker_row.device.type]
        for start in range(self.owned_slice.start, self.owned_slice.stop, length):
            piece = slice(start, min(start + length, self.owned_slice.stop))
            yield piece, to_float(self._sum[piece])


def _as_int64_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of float32 as half as many of int64."""
    return rows.reshape(-1).view(torch.int64).view(len(rows) // 2, -1)
