"""Test rows of each site's own: part of its shard, or its share of the test set. Pure functions, seeded."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scaling_fl import seeding
from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.data.subsets import Indices, stratified
from scaling_fl.errors import UserError

Labels = npt.NDArray[np.integer]


def hold_back(shards: Sequence[Indices], labels: Labels, fraction: float, seed: int) -> list[Indices]:
    """The share `fraction` of each shard, stratified by label: at least one row, but never a site's last one.

    `labels` are those of all training rows. Raises `UserError` if no site has two rows.
    """
    counts = [min(len(shard) - 1, max(1, round(fraction * len(shard)))) for shard in shards]
    if not any(counts):
        raise UserError("site_test=held_back: every site has one row, which it trains on; use more data or fewer sites")
    return [
        shard[stratified(labels[shard], count, seed, f"site test {site}")] if count else shard[:0]
        for site, (shard, count) in enumerate(zip(shards, counts, strict=True))
    ]


def divide(shards: Sequence[Indices], labels: Labels, test_labels: Labels, seed: int) -> list[Indices]:
    """Divide the test set like the training set: of each label, sites get rows in proportion to their training rows.

    Rows of labels that no site trains on are divided in proportion to the sites' sizes. Each test row is at one site.
    Small sites may have none.
    """
    sizes = np.array([len(shard) for shard in shards])
    owners = np.empty(len(test_labels), np.int64)
    for label in np.unique(test_labels):
        rows = np.flatnonzero(test_labels == label)
        of_sites = np.array([int((labels[shard] == label).sum()) for shard in shards])
        shares = np.cumsum(of_sites if of_sites.any() else sizes)
        stops = np.round(len(rows) * shares / shares[-1]).astype(np.int64)
        rng = seeding.generator(seed, "site test", int(label))
        owners[rng.permutation(rows)] = np.repeat(np.arange(len(shards)), np.diff(stops, prepend=0))
    return [np.flatnonzero(owners == site) for site in range(len(shards))]


def make(
    config: Config, shards: list[Indices], labels: Labels, test_labels: Labels, notes: list[str]
) -> tuple[list[Indices], list[Indices]]:
    """What each site trains on, and its own test rows: of the training set, or of the test set with `partitioned`.

    Without the key `site_test`, the shards and no test rows. Appends to `notes`. Raises `UserError`.
    """
    if config.site_test is None:
        return shards, []
    if config.site_test == "held_back":
        tests = hold_back(shards, labels, config.site_test_fraction, config.data_seed)
        shards = [np.setdiff1d(shard, test) for shard, test in zip(shards, tests, strict=True)]
    elif chosen_partition(config.to_mapping()) == "column":
        raise UserError(
            "site_test=partitioned: the test rows can't be divided by partition_column; set site_test=held_back"
        )
    else:
        tests = divide(shards, labels, test_labels, config.data_seed)
    sizes = [len(test) for test in tests]
    notes.append(
        f"site_test={config.site_test}: each site is tested on {min(sizes):,} to {max(sizes):,} rows of its own"
        + (f"; {sizes.count(0):,} sites have none" if 0 in sizes else "")
    )
    return shards, tests
