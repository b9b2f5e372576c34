"""Aggregation that withstands f faulty or hostile sites among the n of a round.

- median: of each parameter (Yin et al. 2018, algorithm 1, option I).
- trimmed_mean: of each parameter, without its f largest and f smallest values (Yin et al. 2018, option II).
- krum: the mean of the m deltas with the least scores; a delta's score is the sum of the squared distances to its
  n − f − 2 nearest others (Blanchard et al. 2017; Multi-Krum for m > 1).
- geometric_median: argmin_z Σ w_k ‖z − delta_k‖, by the smoothed Weiszfeld algorithm (Pillutla et al. 2022).

The deltas of all sites are kept in files until the round ends, n times the size of the model, and are read in blocks, so
that memory is bounded. All distances follow from the inner products of the deltas. Those are summed over blocks that don't
depend on the number of workers, so neither does the result.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.weighted_sum import divergence_error, max_abs
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites

Deltas = npt.NDArray[np.float32]  # (n, length of a block)
Products = npt.NDArray[np.float64]  # (n, n): inner products of the deltas

_BLOCK = 2**24  # float32 values that are read at a time: 64 MiB
_TOLERANCE = 1e-9  # change of the weights at which Weiszfeld's iterations end
_MAX_ITERATIONS = 1000
_SMOOTHING = 1e-6  # ν of Pillutla et al.: the least distance that counts


@dataclass
class Robust:
    """The aggregation of one round."""

    collectives: Collectives
    state: ServerState
    weights: Mapping[int, float]  # by site, of the whole cohort
    config: Any
    folder: Path  # for the deltas, shared by all workers

    def __post_init__(self) -> None:
        self._diverged: list[int] = []
        self.results: dict[str, float] = {}

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        if not max_abs(delta).item() < float("inf"):
            self._diverged.append(site)
        self._path(site).parent.mkdir(exist_ok=True)
        delta.cpu().numpy().tofile(self._path(site))

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        if bad := sorted(site for found in self.collectives.all_gather(self._diverged) for site in found):
            raise divergence_error(bad)
        size, sites = len(self.state.row), list(self.weights)
        files = [np.memmap(self._path(site), np.float32, "r", shape=(size,)) for site in sites]
        name, num_faulty = self.config.aggregation, self.config.faulty_sites or 0
        length = max(1, _BLOCK // len(sites))
        chosen = None
        if name in ("krum", "geometric_median"):
            products = self._products(files, length)
            if name == "krum":
                chosen = krum_weights(products, num_faulty, self.config.krum_sites)
            else:
                chosen = geometric_median_weights(products, np.array(list(self.weights.values())))
        owned = self.collectives.owned_slice
        for start in range(owned.start, owned.stop, length):
            chunk = slice(start, min(start + length, owned.stop))
            deltas = np.stack([file[chunk] for file in files])
            if chosen is not None:
                found = np.einsum("n,nl->l", chosen, deltas)  # in float64, in the order of sites
            else:
                found = np.median(deltas, axis=0) if name == "median" else trimmed_mean(deltas, num_faulty)
            yield chunk, torch.from_numpy(found.astype(np.float32)).to(self.state.row.device)
        self.collectives.barrier()

    def _products(self, files: list[Any], length: int) -> Products:
        """All inner products, each worker's share of the blocks summed in the order of blocks."""
        mine = {}
        for block in range(self.collectives.rank, -(-len(self.state.row) // length), self.collectives.num_workers):
            deltas = np.stack([file[block * length : (block + 1) * length] for file in files]).astype(np.float64)
            mine[block] = deltas @ deltas.T
        found = {block: value for part in self.collectives.all_gather(mine) for block, value in part.items()}
        return np.sum([found[block] for block in sorted(found)], axis=0)

    def _path(self, site: int) -> Path:
        return self.folder / str(site)


def trimmed_mean(deltas: Deltas, trim: int) -> npt.NDArray[np.float64]:
    """The mean of each column (n, length) without its `trim` largest and smallest values."""
    ordered = np.sort(deltas, axis=0)
    return ordered[trim : len(deltas) - trim].mean(axis=0, dtype=np.float64)


def krum_weights(products: Products, num_faulty: int, num_chosen: int) -> npt.NDArray[np.float64]:
    """1/m for the m = `num_chosen` sites with the least scores, otherwise 0."""
    squares = np.diag(products)
    distances = squares[:, None] + squares[None, :] - 2 * products
    np.fill_diagonal(distances, np.inf)
    nearest = np.sort(distances, axis=1)[:, : len(products) - num_faulty - 2]
    chosen = np.argsort(nearest.sum(axis=1), kind="stable")[:num_chosen]
    weights = np.zeros(len(products))
    weights[chosen] = 1 / num_chosen
    return weights


def geometric_median_weights(products: Products, weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The β_k for which z = Σ β_k delta_k is the geometric median of the deltas, which count `weights`."""
    current = weights / weights.sum()
    for _ in range(_MAX_ITERATIONS):
        # ‖z − delta_k‖² = ⟨delta_k, delta_k⟩ − 2 ⟨z, delta_k⟩ + ⟨z, z⟩
        of_z = products @ current
        distances = np.sqrt(np.maximum(np.diag(products) - 2 * of_z + current @ of_z, 0))
        renewed = weights / np.maximum(distances, _SMOOTHING)
        renewed /= renewed.sum()
        change, current = np.abs(renewed - current).max(), renewed
        if change < _TOLERANCE:
            break
    return current


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Robust:
    """The configured aggregation."""
    config = worker_sites.resident.config
    weights = worker_sites.cohort(round_)
    return Robust(collectives, state, weights, config, worker_sites.shards.folder / "deltas")
