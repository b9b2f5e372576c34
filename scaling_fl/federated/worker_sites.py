"""The sites that a worker trains in each round. Any worker can train any site: it can read all shards."""

from array import array
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaling_fl.data.token_store import TokenStore
from scaling_fl.federated import cohort
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site

Indices = npt.NDArray[np.int64]


class Shards:
    """The training examples of each site: slices of one memory-mapped array, so that 10,000 sites cost little."""

    def __init__(self, folder: Path):
        self.folder = folder  # of the job's working files, which all workers of a machine share
        self._indices = np.load(folder / "shards.npy", mmap_mode="r")
        self._bounds: Indices = np.load(folder / "bounds.npy")

    def __getitem__(self, site: int) -> Indices:
        return np.asarray(self._indices[self._bounds[site] : self._bounds[site + 1]])

    @cached_property
    def sizes(self) -> "array[int]":
        """Number of examples, by site: numbers of Python's that numpy reads without a copy."""
        return array("q", np.diff(self._bounds).tobytes())


@dataclass(frozen=True)
class SiteTests:
    """The test rows of each site's own."""

    store: TokenStore
    rows: Shards

    @cached_property
    def all_rows(self) -> Indices:
        """Those of all sites, in ascending order."""
        return np.sort(np.concatenate([self.rows[site] for site in range(len(self.rows.sizes))]))


def write_shards(folder: Path, shards: Sequence[Indices]) -> None:
    """Write the shards to the files that `Shards` reads."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "shards.npy", np.concatenate(shards))
    np.save(folder / "bounds.npy", np.cumsum([0, *map(len, shards)]))


@dataclass(frozen=True)
class WorkerSites:
    """The sites that one worker trains, one after another, on its one resident model."""

    resident: Resident
    shards: Shards
    rank: int
    num_workers: int
    tests: SiteTests | None = None

    @cached_property
    def tokens(self) -> list[int] | None:
        """What a language model predicts of each site's examples, if sites are weighted by it."""
        if self.resident.config.weighting != "tokens":
            return None
        of_rows = self.resident.train.num_predictions
        return [int(of_rows[self.shards[site]].sum()) for site in range(len(self.shards.sizes))]

    def cohort(self, round_: int) -> dict[int, float]:
        """The sites of a round and their weights; see `cohort.sample`."""
        return cohort.sample(self.resident.config, self.shards.sizes, round_, self.tokens)

    def participants(self, round_: int) -> Iterator[Site]:
        """Yield this worker's share of the round's cohort. Every worker computes the same assignment."""
        config, chosen = self.resident.config, self.cohort(round_)
        if config.baseline == "centralised":  # one site with the whole cohort's examples
            if self.rank == 0:
                yield Site(0, np.sort(np.concatenate([self.shards[site] for site in chosen])), self.resident)
            return
        yield from self._assigned(chosen)

    def everyone(self) -> Iterator[Site]:
        """Yield this worker's share of all sites."""
        yield from self._assigned(range(len(self.shards.sizes)))

    def _assigned(self, sites: Collection[int]) -> Iterator[Site]:
        for site in cohort.assign(self.shards.sizes, sites, self.num_workers)[self.rank]:
            yield Site(site, self.shards[site], self.resident)
