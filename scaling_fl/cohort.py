"""Which sites take part in a round, what their deltas weigh, and who trains them: pure functions that need no torch."""

import heapq
from collections.abc import Sequence

import numpy as np

from scaling_fl import seeds
from scaling_fl.config import Config


def size(config: Config, num_sites: int) -> int:
    """How many sites take part in a round."""
    if config.participation is not None:
        return max(1, round(config.participation * num_sites))
    return num_sites if config.sites_per_round is None else config.sites_per_round


def single(config: Config, num_sites: int, num_workers: int) -> bool:
    """Whether no worker trains more than one site in a round."""
    return config.baseline == "centralised" or size(config, num_sites) <= num_workers


def draw(config: Config, sizes: Sequence[int], round_: int) -> list[int]:
    """The sites that take part, in ascending order: a function of (seed, round). `sizes`: examples, by site.

    Without replacement; each site is as likely as any other, or as it has examples.
    """
    count = size(config, len(sizes))
    if count == len(sizes):
        return list(range(count))
    shares = np.array(sizes) / sum(sizes) if config.sampling == "by_examples" else None
    chosen = seeds.generator(config.seed, "cohort", round_).choice(len(sizes), count, replace=False, p=shares)
    return sorted(chosen.tolist())


def weights(config: Config, sizes: Sequence[int], cohort: Sequence[int]) -> list[float]:
    """What the deltas of a cohort weigh in the mean; their sum is 1.

    n_k / n (McMahan et al. 2017). Sites that were drawn as they have examples weigh the same (Li et al. 2020, scheme
    II): otherwise their examples would count twice.
    """
    if config.sampling == "by_examples" and len(cohort) < len(sizes):
        return [1 / len(cohort)] * len(cohort)
    total = sum(sizes[site] for site in cohort)
    return [sizes[site] / total for site in cohort]


def deal(sizes: Sequence[int], cohort: Sequence[int], num_workers: int) -> list[list[int]]:
    """The sites of a cohort that each worker trains, so that all finish at about the same time.

    No more sites than workers: one each, in order. Otherwise longest first, each to the worker with least to do
    (Graham 1969): at most a third over the best possible.
    """
    if len(cohort) <= num_workers:
        return [[site] for site in cohort] + [[] for _ in range(num_workers - len(cohort))]
    load = [(0, worker) for worker in range(num_workers)]
    dealt: list[list[int]] = [[] for _ in range(num_workers)]
    for site in sorted(cohort, key=lambda site: (-sizes[site], site)):
        examples, worker = heapq.heappop(load)
        dealt[worker].append(site)
        heapq.heappush(load, (examples + sizes[site], worker))
    return dealt
