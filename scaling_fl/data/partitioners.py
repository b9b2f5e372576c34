"""Partitions of the training examples among sites: pure functions of labels, number of sites, seed and parameters.

Each returns `owners` (N,), the site 0…S-1 of each example, so no example can be lost or assigned twice.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from scaling_fl import seeding
from scaling_fl.data.subsets import Indices
from scaling_fl.errors import UserError

Labels = npt.NDArray[np.integer]
Owners = npt.NDArray[np.int64]


def shards(owners: Owners, num_sites: int) -> list[Indices]:
    """The examples of each site, in ascending order."""
    ends = np.cumsum(np.bincount(owners, minlength=num_sites))
    return np.split(np.argsort(owners, kind="stable").astype(np.int64), ends[:-1])


def iid(labels: Labels, num_sites: int, seed: int) -> Owners:
    """Shuffled and divided evenly: sizes differ by at most one."""
    return _assign_runs(seeding.generator(seed, "shards").permutation(len(labels)), num_sites)


def by_label(labels: Labels, num_sites: int) -> Owners:
    """Sorted by label and split into contiguous runs (Hilmkil et al. 2021): sizes differ by at most one."""
    return _assign_runs(np.argsort(labels, kind="stable"), num_sites)


def dirichlet(labels: Labels, num_sites: int, seed: int, alpha: float) -> Owners:
    """Each label is divided among the sites in proportions drawn from Dir(alpha, …, alpha), so sizes differ as well.

    Yurochkin et al. 2019 (arXiv 1905.12022): p_c ~ Dir_S(alpha) for each class c.
    """
    rng = seeding.generator(seed, "dirichlet")
    owners = np.empty(len(labels), np.int64)
    for rows in _rows_of_labels(labels, rng):
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(num_sites, alpha))) * len(rows)).astype(np.int64)
        ends[-1] = len(rows)
        # A new order of sites for each label: otherwise rounding would favour the same sites every time.
        owners[rows] = np.repeat(rng.permutation(num_sites), np.diff(ends, prepend=0))
    return owners


def dirichlet_balanced(labels: Labels, num_sites: int, seed: int, alpha: float) -> Owners:
    """Sites of equal size (±1), each with label proportions drawn from Dir(alpha × the labels' shares of all examples).

    Hsu et al. 2019 (arXiv 1909.06335): the sites draw in turn, without replacement. Proportions are renormalised over
    the labels that have examples left, so the last sites receive the remainder.
    """
    rng = seeding.generator(seed, "dirichlet balanced")
    rows_of = _rows_of_labels(labels, rng)
    left = np.array(list(map(len, rows_of)))  # (C,) examples
    prior = left / left.sum()
    taken = np.zeros((num_sites, len(left)), np.int64)
    for site, size in enumerate(_even_sizes(len(labels), num_sites)):
        shares = rng.dirichlet(alpha * prior)
        # Draws of an exhausted label are discarded and repeated, which is equivalent to drawing from the other labels.
        while missing := size - taken[site].sum():
            weights = np.where(left > 0, shares, 0.0)
            if weights.sum() == 0:
                weights = left.astype(np.float64)
            drawn = np.minimum(rng.multinomial(missing, weights / weights.sum()), left)
            taken[site] += drawn
            left -= drawn
    owners = np.empty(len(labels), np.int64)
    for rows, numbers in zip(rows_of, taken.T, strict=True):
        owners[rows] = np.repeat(np.arange(num_sites), numbers)
    return owners


def labels_per_site(labels: Labels, num_sites: int, seed: int, number: int) -> Owners:
    """Sorted by label and split into S × `number` equal pieces; each site receives `number` of them at random.

    McMahan et al. 2017 (arXiv 1602.05629). Raises `UserError` if there are too few labels or examples.
    """
    if number > (num_labels := len(np.unique(labels))):
        raise UserError(f"labels_per_site={number}: the training examples have {num_labels} labels; lower it")
    if number * num_sites > len(labels):
        raise UserError(
            f"labels_per_site={number}: {num_sites:,} sites would need {num_sites * number:,} pieces of "
            f"{len(labels):,} training examples; lower it, or use fewer sites"
        )
    rng = seeding.generator(seed, "labels per site")
    pieces = _assign_runs(np.concatenate(_rows_of_labels(labels, rng)), num_sites * number)
    return (rng.permutation(num_sites * number) // number)[pieces]


def sizes(labels: Labels, num_sites: int, seed: int, law: str, skew: float) -> Owners:
    """Shuffled and divided unevenly.

    "lognormal": sizes are proportional to exp(skew × z), z ~ N(0, 1); "power": to rank ** -skew, with the ranks 1…S
    assigned to the sites at random.
    """
    rng = seeding.generator(seed, "sizes")
    if law == "power":
        logarithms = -skew * np.log(1 + rng.permutation(num_sites))
    else:
        logarithms = skew * rng.standard_normal(num_sites)
    weights = np.exp(logarithms - logarithms.max())  # the largest is 1, so that no skew overflows
    ends = np.rint(np.cumsum(weights) * (len(labels) / weights.sum())).astype(np.int64)
    ends[-1] = len(labels)
    return _assign_runs(rng.permutation(len(labels)), num_sites, np.diff(ends, prepend=0))


def ensure_minimum(owners: Owners, num_sites: int, seed: int, minimum: int) -> Owners:
    """Top up sites that hold fewer than `minimum` examples with random examples of the largest sites.

    The largest sites are lowered to a common level, so that most sites keep all their examples. N must be at
    least S × `minimum`.
    """
    held = np.bincount(owners, minlength=num_sites)
    missing = np.maximum(minimum - held, 0)
    if not missing.any():
        return owners
    low, high = minimum, int(held.max())  # invariant: the highest level that frees enough examples is in [low, high)
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(held - level, 0).sum() >= missing.sum() else (low, level)
    given = np.maximum(held - low, 0)
    # The level may free more than is missing: the first sites then keep one more.
    given[np.flatnonzero(given)[: given.sum() - missing.sum()]] -= 1
    rng = seeding.generator(seed, "minimum")
    order = rng.permutation(len(owners))
    order = order[np.argsort(owners[order], kind="stable")]  # grouped by site, in random order within each
    rank = np.arange(len(owners)) - np.repeat(np.cumsum(held) - held, held)
    moved = rng.permutation(order[rank < np.repeat(given, held)])
    result = owners.copy()
    result[moved] = np.repeat(np.arange(num_sites), missing)
    return result


def by_value(values: Sequence[str], order: Mapping[str, int]) -> Owners:
    """The natural partition: one site per value, numbered by `order`."""
    return np.array([order[value] for value in values], np.int64)


def _assign_runs(order: npt.NDArray[np.int64], num_parts: int, lengths: npt.NDArray[np.int64] | None = None) -> Owners:
    """The owners of the examples if `order` is split into runs of the given `lengths`, or of equal length (±1)."""
    owners = np.empty(len(order), np.int64)
    owners[order] = np.repeat(np.arange(num_parts), _even_sizes(len(order), num_parts) if lengths is None else lengths)
    return owners


def _even_sizes(total: int, num_parts: int) -> npt.NDArray[np.int64]:
    return total // num_parts + (np.arange(num_parts) < total % num_parts)


def _rows_of_labels(labels: Labels, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
    """The examples of each label that occurs, in random order."""
    shuffled = rng.permutation(len(labels))
    counts = np.unique(labels, return_counts=True)[1]
    return np.split(shuffled[np.argsort(labels[shuffled], kind="stable")], np.cumsum(counts)[:-1])
