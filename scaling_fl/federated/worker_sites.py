"""Which sites a worker trains, and when. Any site may be any worker's: all shards are within its reach."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaling_fl.federated import cohort
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site

Indices = npt.NDArray[np.int64]


class Shards:
    """The training examples of each site: parts of one array in a file, so that a site more is a number more."""

    def __init__(self, folder: Path):
        self._indices = np.load(folder / "shards.npy", mmap_mode="r")
        self._bounds: Indices = np.load(folder / "bounds.npy")

    def __getitem__(self, site: int) -> Indices:
        return np.asarray(self._indices[self._bounds[site] : self._bounds[site + 1]])

    @cached_property
    def sizes(self) -> list[int]:
        """Examples, by site."""
        sizes: list[int] = np.diff(self._bounds).tolist()
        return sizes


def write_shards(folder: Path, shards: Sequence[Indices]) -> None:
    """Leave the shards where `Shards` finds them."""
    np.save(folder / "shards.npy", np.concatenate(shards))
    np.save(folder / "bounds.npy", np.cumsum([0, *map(len, shards)]))


@dataclass(frozen=True)
class WorkerSites:
    """The sites of one worker, each on its one resident model, one after another."""

    resident: Resident
    shards: Shards
    rank: int
    num_workers: int

    def participants(self, round_: int) -> Iterator[tuple[Site, float]]:
        """This worker's share of the sites that take part in a round, with the weights of their deltas.

        All workers' weights together sum to 1, and every worker finds the same shares.
        """
        config, sizes = self.resident.config, self.shards.sizes
        drawn = cohort.draw(config, sizes, round_)
        if config.baseline == "centralised":  # the same examples as the cohort would have
            if self.rank == 0:
                examples = np.sort(np.concatenate([self.shards[site] for site in drawn]))
                yield Site(0, examples, self.resident), 1.0
            return
        for site in cohort.assign(sizes, drawn, self.num_workers)[self.rank]:
            yield Site(site, self.shards[site], self.resident), drawn[site]
