"""Stratified subsets: the examples to keep, and those to hold back from all sites. Pure functions, seeded."""

import numpy as np
import numpy.typing as npt

from scaling_fl import seeding
from scaling_fl.errors import UserError

Indices = npt.NDArray[np.int64]


def held_back(
    labels: npt.NDArray[np.integer],
    fraction: float,
    seed: int,
    key: str = "validation_fraction",
    purpose: str = "held back",
) -> Indices:
    """The share `fraction` of the examples, stratified by label, that no site trains on.

    `key`: the configuration key that sets `fraction`. Different purposes draw different examples. Raises `UserError` if
    a `fraction` above 0 rounds to no example, or to all of them.
    """
    count = round(fraction * len(labels))
    if fraction > 0 and not 0 < count < len(labels):
        raise UserError(
            f"{key}={fraction:g}: holds back {'all' if count else 'none'} of {len(labels)} training "
            f"examples; {'lower' if count else 'raise'} it, or use more data"
        )
    return stratified(labels, count, seed, purpose)


def stratified(labels: npt.NDArray[np.integer], keep: int, seed: int, purpose: str = "stratified") -> Indices:
    """`keep` of the N examples, in order, stratified by label (largest remainders); all N if `keep` is N or more."""
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
