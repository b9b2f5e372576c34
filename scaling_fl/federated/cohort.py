"""Which sites take part in a round, what their deltas weigh, and who trains them: pure functions that need no torch."""

import heapq
from collections.abc import Collection, Sequence

import numpy as np

from scaling_fl import seeding
from scaling_fl.config.schema import Config


def size(config: Config, num_sites: int) -> int:
    """How many sites take part in a round; fewer where one is drawn several times."""
    if config.participation is not None:
        return max(1, round(config.participation * num_sites))
    return num_sites if config.sites_per_round is None else config.sites_per_round


def single_site_per_worker(config: Config, num_sites: int, num_workers: int) -> bool:
    """Whether no worker trains more than one site in a round."""
    return config.baseline == "centralised" or size(config, num_sites) <= num_workers


def draw(config: Config, sizes: Sequence[int], round_: int) -> dict[int, float]:
    """The sites that take part, in ascending order, and what their deltas weigh in the mean: the sum is 1.

    A function of (seed, round). `sizes`: examples, by site. Drawn uniformly, each site once at most, deltas weigh n_k / n
    (McMahan et al. 2017). Drawn by examples, each draw weighs the same, and a site may be drawn several times (Li et al.
    2020, scheme I): so the mean is, in expectation, that over all sites.
    """
    count, rng = size(config, len(sizes)), seeding.generator(config.seed, "cohort", round_)
    if count < len(sizes) and config.sampling == "by_examples":
        drawn = rng.choice(len(sizes), count, p=np.array(sizes) / sum(sizes))
        sites, times = np.unique(drawn, return_counts=True)
        return dict(zip(sites.tolist(), (times / count).tolist(), strict=True))
    chosen = range(count) if count == len(sizes) else sorted(rng.choice(len(sizes), count, replace=False).tolist())
    total = sum(sizes[site] for site in chosen)
    return {site: sizes[site] / total for site in chosen}


def assign(sizes: Sequence[int], cohort: Collection[int], num_workers: int) -> list[list[int]]:
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
