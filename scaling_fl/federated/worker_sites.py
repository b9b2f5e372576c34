"""The sites that a worker trains in each round. Any worker can train any site: it can read all shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaling_fl.federated import cohort, local_work
from scaling_fl.federated.algorithms import fednova
from scaling_fl.federated.algorithms.fednova import Weights
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site

Indices = npt.NDArray[np.int64]


class Shards:
    """The training examples of each site: slices of one memory-mapped array, so that 10,000 sites cost little."""

    def __init__(self, folder: Path):
        self._indices = np.load(folder / "shards.npy", mmap_mode="r")
        self._bounds: Indices = np.load(folder / "bounds.npy")

    def __getitem__(self, site: int) -> Indices:
        return np.asarray(self._indices[self._bounds[site] : self._bounds[site + 1]])

    @cached_property
    def sizes(self) -> list[int]:
        """Number of examples, by site."""
        sizes: list[int] = np.diff(self._bounds).tolist()
        return sizes


def write_shards(folder: Path, shards: Sequence[Indices]) -> None:
    """Write the shards to the files that `Shards` reads."""
    np.save(folder / "shards.npy", np.concatenate(shards))
    np.save(folder / "bounds.npy", np.cumsum([0, *map(len, shards)]))


@dataclass(frozen=True)
class WorkerSites:
    """The sites that one worker trains, one after another, on its one resident model."""

    resident: Resident
    shards: Shards
    rank: int
    num_workers: int

    def weights(self, round_: int) -> Weights:
        """The weights of the round's cohort, the same on every worker."""
        config, sizes = self.resident.config, self.shards.sizes
        shares = cohort.sample(config, sizes, round_)
        if not config.fednova:
            return Weights(shares, 1.0)
        steps = {site: local_work.of_site(config, sizes[site], round_, site).steps for site in shares}
        return fednova.weights(
            shares, {site: fednova.effective_steps(config, round_, number) for site, number in steps.items()}
        )

    def participants(self, round_: int) -> Iterator[tuple[Site, float]]:
        """Yield this worker's share of the round's cohort, with the sites' aggregation weights.

        Every worker computes the same assignment. The weights of all workers together sum to 1.
        """
        config, sizes = self.resident.config, self.shards.sizes
        weights = self.weights(round_).by_site
        if config.baseline == "centralised":  # one site with the whole cohort's examples
            if self.rank == 0:
                examples = np.sort(np.concatenate([self.shards[site] for site in weights]))
                yield Site(0, examples, self.resident), 1.0
            return
        for site in cohort.assign(sizes, weights, self.num_workers)[self.rank]:
            yield Site(site, self.shards[site], self.resident), weights[site]
