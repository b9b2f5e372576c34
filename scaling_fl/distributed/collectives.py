"""Aggregation over all workers: a reduce-scatter through shared memory, and an all-reduce between memory domains.

A memory domain is a GPU, whose memory its workers share through CUDA IPC, or a node's host memory, for sites on the CPU.
Each domain holds a row per worker, in which its model lives, and a copy of the server's state. Every worker owns a slice
of all rows: it reduces the slice and updates the server's state there; then all read the result. With several domains,
one worker of each, its leader, takes part in an all-reduce in between. NCCL alone won't do: it refuses two workers on
one GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from scaling_fl.distributed import cuda_ipc, fused_sum
from scaling_fl.distributed.control_plane import TIMEOUT, ControlPlane
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.distributed.weighted_sum import (
    CHUNK,
    FIXED_POINT_SCALE,
    MAX_DELTA,
    WeightedSum,
    accumulate,
    as_int64_rows,
    divergence_error,
    max_abs,
    to_float,
)


class _Term(NamedTuple):
    """A row of this worker's memory domain."""

    row: torch.Tensor  # (size,)
    member: int  # the rank of its worker
    scale: float
    of_params: bool  # whether the row holds a site's parameters, and the delta is the server's − them


class Collectives(ControlPlane):
    """This worker's view of all workers of the job: the control plane, and aggregation.

    `worker_row`: this worker's row (size,) for its weighted sum: float32, or int64 in fixed point. `state`: the server's
    rows (1 + moments, size), parameters first, one copy per memory domain. `owned_slice`: the slice of the state that this
    worker reduces and updates. `is_leader`: whether it represents its domain.
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
        """Join the process group and map the memory; every worker must call this.

        `devices`: each worker's device. `size`: length of the flat buffer. `memory`: used unless all workers have GPUs
        whose memory can be shared. `rendezvous`: URL of a file, or of a port of worker 0. `num_moments`: rows of the
        server optimiser. `on_wait(waiting)`: called when this worker starts and stops waiting for others. `exact`: sum in
        fixed point. `single_site`: no worker trains more than one site per round. `nodes`: each worker's node, empty for
        one node; nodes reach each other over the network `interface`.
        """
        super().__init__(rank, devices, rendezvous, on_wait, nodes, interface)
        self._num_moments = num_moments
        self._exact, self._single_site = exact, single_site
        self._width = 2 if exact and not single_site else 1  # of a worker's row, in float32 rows
        domains = self._devices = [f"{node} {device}" for node, device in zip(self._nodes, devices, strict=True)]
        rows = self.gpu_memory((self._num_rows(domains, domains[rank]), size))
        if rows is None:
            if self._gpu is not None:
                domains = [f"{node} host" for node in self._nodes]
            rows = self._host_rows(domains, size, memory)
        self._members = [other for other, domain in enumerate(domains) if domain == domains[rank]]
        me, count = self._members.index(rank), len(self._members)
        own, others = rows[: count * self._width], rows[count * self._width :]
        self._rows = own if self._width == 1 else as_int64_rows(own)
        self.worker_row, self.state = self._rows[me], others[: 1 + num_moments]
        bounds = [size * i // count for i in range(count + 1)]
        self.owned_slice = slice(bounds[me], bounds[me + 1])
        leaders = [domains.index(domain) for domain in dict.fromkeys(domains)]
        self.is_leader = rank in leaders
        self._sum: torch.Tensor | None = None
        self._leaders: Any = None
        if len(leaders) > 1:
            self._sum = as_int64_rows(rows[-2:])[0] if exact else rows[-1]
            with self._collective():
                self._leaders = dist.new_group(leaders, TIMEOUT, "nccl" if rows.is_cuda else "gloo")

    @property
    def _has_kernel(self) -> bool:
        """Whether the mean in fixed point of this domain's rows is one pass over memory."""
        row = self.worker_row
        return self._exact and row.dtype == torch.float32 and not row.is_cuda and not fused_sum.refusal(row.device)

    @property
    def is_first_on_device(self) -> bool:
        """Whether no worker of lower rank is on this worker's device."""
        return self._devices.index(self._devices[self.rank]) == self.rank

    def gpu_memory(self, shape: tuple[int, int]) -> torch.Tensor | None:
        """Zeroed float32 memory of this worker's GPU, the same for all its workers.

        Returns None, on every worker, if they train on the CPU or any of them was refused. All workers must call this,
        those of one GPU with the same `shape`.
        """
        if self._gpu is None or self.transport_note:  # refused already
            return None
        leader = self._devices.index(self._devices[self.rank])
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

    def _host_rows(self, domains: Sequence[str], size: int, memory: SharedMemory) -> torch.Tensor:
        """Map this worker's domain in its node's shared memory, which holds the node's domains one after another."""
        local = [domain for domain, node in zip(domains, self._nodes, strict=True) if node == self._nodes[self.rank]]
        counts = {domain: self._num_rows(domains, domain) for domain in local}
        host_rows = torch.from_numpy(memory.floats(sum(counts.values()), size))
        if self._gpu is not None:
            self.transport_note += (
                ", pinned" if cuda_ipc.pin(host_rows, self._gpu) else ", which can't be pinned either"
            )
        mine = domains[self.rank]
        first = sum(counts[domain] for domain in list(counts)[: list(counts).index(mine)])
        return host_rows[first : first + counts[mine]]

    def _num_rows(self, domains: Sequence[str], domain: str) -> int:
        """Count a domain's rows: its workers, the server's state and, with several domains, the sum over all."""
        cross_domain = (1 + self._exact) * (len(set(domains)) > 1)
        return domains.count(domain) * self._width + 1 + self._num_moments + cross_domain

    def broadcast_state(self) -> None:
        """Broadcast worker 0's `state` to all memory domains."""
        self.barrier()
        if self._leaders is not None and self.is_leader:
            with self._collective():
                dist.broadcast(self.state, 0, group=self._leaders)
        self.barrier()

    def model_buffer(self, device: torch.device) -> torch.Tensor:
        """Return memory (size,) on `device` for this worker's model: its row if the delta of its one site goes there."""
        if self._single_site and self.worker_row.device == device:
            return self.worker_row
        return torch.zeros(self.state.shape[1], device=device)

    def weighted_sum(self) -> WeightedSum:
        """Return an empty sum for this worker's sites of a round."""
        return WeightedSum(self.worker_row, self._single_site)

    def weighted_mean(self, total: WeightedSum) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the weighted mean of all sites' deltas within `owned_slice`, in chunks that fit into a cache.

        McMahan et al. 2017, algorithm 1: Σ n_k / n × delta_k, delta = server's − site's parameters. Rows are added in
        rank order, so that even float sums are deterministic. A chunk is valid until the next one. After the last, all
        workers have finished: rows may be written and the state read again. Raises `JobFailed` there, on every worker,
        if a delta isn't finite or is too large for fixed point.
        """
        self._synchronise_gpu()
        heard = self.all_gather_numbers(total.scale, total.of_params)
        terms = [
            _Term(row, member, heard[member][0], bool(heard[member][1]))
            for row, member in zip(self._rows, self._members, strict=True)
            if heard[member][0] > 0
        ]
        limit = MAX_DELTA if self._exact else float("inf")
        largest = torch.zeros(len(terms), device=self.worker_row.device)
        extremes = [torch.tensor([0.0, *total.largest_delta.values()], device=self.worker_row.device).max()]
        reduce = self._reduce_in_domain if self._sum is None else self._reduce_across_domains
        for chunk, delta in reduce(terms, largest):
            extremes.append(max_abs(delta))
            yield chunk, delta
        finite = (torch.cat([largest, torch.stack(extremes)]) < limit).all().item()
        self._synchronise_gpu()
        if not all(ok for (ok,) in self.all_gather_numbers(finite)):
            of_slices = self.all_gather(dict(zip((term.member for term in terms), largest.tolist(), strict=True)))
            own = [values[self.rank] for values in of_slices if self.rank in values] if self._exact else None
            bad = sorted(site for sites in self.all_gather(total.diverged_sites(limit, own)) for site in sites)
            raise divergence_error(bad, limit)

    def _reduce_in_domain(
        self, terms: list[_Term], largest: torch.Tensor, raw: bool = False
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield Σ scale × delta over the rows of this domain; `raw`: in the dtype of the sum, rather than float32.

        `largest` (terms,) becomes the max |delta| of what is converted to fixed point.
        """
        length = CHUNK[self.worker_row.device.type]
        one_pass = bool(terms) and not raw and self._has_kernel
        dtype = torch.int64 if self._exact and not one_pass else torch.float32
        buffer = torch.empty(length, device=self.worker_row.device, dtype=dtype)
        for start in range(self.owned_slice.start, self.owned_slice.stop, length):
            chunk = slice(start, min(start + length, self.owned_slice.stop))
            summed = buffer[: chunk.stop - chunk.start]
            parts = [term.row[chunk] for term in terms]
            servers = [self.state[0, chunk] if term.of_params else None for term in terms]
            if one_pass:
                scales = [FIXED_POINT_SCALE * term.scale for term in terms]
                torch.maximum(largest, fused_sum.mean_fixed(summed, parts, scales, servers), out=largest)
                yield chunk, summed
                continue
            if not terms:
                summed.zero_()
            for number, (term, part, server) in enumerate(zip(terms, parts, servers, strict=True)):
                converted = accumulate(summed, part, term.scale, number == 0, server)
                if converted is not None:
                    largest[number] = torch.maximum(largest[number], converted)
            yield chunk, summed if raw else to_float(summed)

    def _reduce_across_domains(self, terms: list[_Term], largest: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the same over all domains, by one all-reduce among their leaders."""
        assert self._sum is not None
        for chunk, summed in self._reduce_in_domain(terms, largest, raw=True):
            self._sum[chunk] = summed
        self.barrier()
        if self.is_leader:
            with self._collective():
                dist.all_reduce(self._sum, group=self._leaders)
        self.barrier()
        length = CHUNK[self.worker_row.device.type]
        for start in range(self.owned_slice.start, self.owned_slice.stop, length):
            chunk = slice(start, min(start + length, self.owned_slice.stop))
            yield chunk, to_float(self._sum[chunk])
