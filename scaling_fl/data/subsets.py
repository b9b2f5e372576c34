"""Which examples are kept, and which are held back from all sites: pure functions of labels, number and seed."""

import numpy as np
import numpy.typing as npt

from scaling_fl import seeding
from scaling_fl.errors import UserError

Indices = npt.NDArray[np.int64]


def held_back(labels: npt.NDArray[np.integer], fraction: float, seed: int) -> Indices:
    """The share `fraction` of the examples that no site gets: each label in its proportion, seeded.

    Raises `UserError` where that is no example, though some were asked for, or all of them.
    """
    count = round(fraction * len(labels))
    if fraction > 0 and not 0 < count < len(labels):
        raise UserError(
            f"validation_fraction={fraction:g}: of {len(labels)} training examples that is "
            f"{'each one' if count else 'none'}; give another one, or more data"
        )
    return stratified(labels, count, seed, "held back")


def stratified(labels: npt.NDArray[np.integer], keep: int, seed: int, purpose: str = "stratified") -> Indices:
    """`keep` of the examples, in their order, each label in its proportion (largest remainders; seeded).

    `keep` of N or more keeps all N.
    """
    if keep >= len(labels):
        return np.arange(len(labels), dtype=np.int64)
    values, counts = np.unique(labels, return_counts=True)
    quotas = counts * keep / len(labels)
    kept = np.floor(quotas).astype(np.int64)
    largest_remainders = np.argsort(kept - quotas, kind="stable")[: keep - kept.sum()]
    kept[largest_remainders] += 1
    rng = seeding.generator(seed, purpose)
    chosen = [
        rng.permutation(np.flatnonzero(labels == value))[:number] for value, number in zip(values, kept, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)
