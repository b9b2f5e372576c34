"""The cohort of a round: client sampling, aggregation weights and the assignment to workers. Pure, without torch."""

import heapq
import math
from collections.abc import Collection, Sequence

import numpy as np

from scaling_fl import seeding
from scaling_fl.config.schema import Config

# The rules that cohorts are drawn by, for checkpoint headers. By rule 1, `by_examples` drew nothing if the cohort had the
# size of all sites: each took part, weighted by its examples.
RULES = 2


def size(config: Config, num_sites: int) -> int:
    """The number of draws per round: the cohort's size, or more if `by_examples` draws a site repeatedly."""
    if config.participation is not None:
        return max(1, round(config.participation * num_sites))
    return num_sites if config.sites_per_round is None else config.sites_per_round


def share(config: Config) -> float:
    """The cohort's size as a share of all sites, for a configuration that says how many there are."""
    return probability(config, config.all_sites)


def probability(config: Config, num_sites: int) -> float:
    """The probability with which a site takes part in a round."""
    if config.participation is not None and config.sampling == "poisson":
        return config.participation
    return size(config, num_sites) / num_sites


def is_everyone(config: Config, num_sites: int) -> bool:
    """Whether every site takes part in every round."""
    return config.sampling == "uniform" and size(config, num_sites) == num_sites


def single_site_per_worker(config: Config, num_sites: int, num_workers: int) -> bool:
    """Whether no worker ever sums the deltas of several sites, noise or masks."""
    if config.sampling == "poisson" or config.dp_clip is not None or config.secure_aggregation:
        return False
    return config.baseline == "centralised" or size(config, num_sites) <= num_workers


def sample(config: Config, sizes: Sequence[int], round_: int, tokens: Sequence[int] | None = None) -> dict[int, float]:
    """Sample the cohort of a round; return each site's aggregation weight, in ascending order of sites.

    A function of (seed, round). `sizes` are the sites' numbers of examples, `tokens` those of `weighting=tokens`. The
    weights sum to 1; with differential privacy, only in the mean.

    uniform      without replacement, with weights n_k / n (McMahan et al. 2017), or as `weighting` says
    by_examples  with replacement; every draw weighs equally (Li et al. 2020, scheme I), so that the expected mean is the
                 one over all sites. As many draws as there are sites are draws as well: some sites are drawn
                 repeatedly, and others not at all
    poisson      each site on its own; a cohort may be empty
    """
    count, rng = size(config, len(sizes)), seeding.generator(config.seed, "cohort", round_)
    if config.sampling == "by_examples":
        bounds = np.cumsum(np.asarray(sizes) / np.sum(sizes))  # as `rng.choice` draws, without its checks
        bounds /= bounds[-1]
        drawn = bounds.searchsorted(rng.random(count), side="right")
        sites, times = np.unique(drawn, return_counts=True)
        return dict(zip(sites.tolist(), (times / count).tolist(), strict=True))
    if config.sampling == "poisson":
        chosen = np.flatnonzero(rng.random(len(sizes)) < probability(config, len(sizes))).tolist()
    else:
        chosen = _uniformly(config, len(sizes), count, rng)
    if config.dp_clip is not None:  # the fixed denominator of DP-FedAvg
        return dict.fromkeys(chosen, 1 / (probability(config, len(sizes)) * len(sizes)))
    weights = {site: _weight(config, (tokens or sizes)[site]) for site in chosen}
    total = sum(weights.values())
    return {site: weight / total for site, weight in weights.items()}


def _uniformly(config: Config, num_sites: int, count: int, rng: np.random.Generator) -> list[int]:
    if is_everyone(config, num_sites):
        return list(range(num_sites))
    return sorted(rng.choice(num_sites, count, replace=False).tolist())


def _weight(config: Config, examples: int) -> float:
    match config.weighting:
        case "uniform":
            return 1
        case "sqrt":
            return math.sqrt(examples)
    return examples


def trained(config: Config, sizes: Sequence[int], round_: int) -> dict[int, int]:
    """The sites that train in a round, with the sizes of their shards; for `baseline=centralised` the cohort as site 0."""
    chosen = {site: sizes[site] for site in sample(config, sizes, round_)}
    return {0: sum(chosen.values())} if config.baseline == "centralised" else chosen


def assign(sizes: Sequence[int], cohort: Collection[int], num_workers: int) -> list[list[int]]:
    """Assign the cohort's sites to workers so that all finish at about the same time; return the sites by worker.

    If there are enough workers, each trains one site, in order. Otherwise the largest site goes first, to the least
    loaded worker (LPT scheduling, Graham 1969): at most a third slower than the optimum.
    """
    if len(cohort) <= num_workers:
        return [[site] for site in cohort] + [[] for _ in range(num_workers - len(cohort))]
    load = [(0, worker) for worker in range(num_workers)]
    assignment: list[list[int]] = [[] for _ in range(num_workers)]
    for site in sorted(cohort, key=lambda site: (-sizes[site], site)):
        examples, worker = heapq.heappop(load)
        assignment[worker].append(site)
        heapq.heappush(load, (examples + sizes[site], worker))
    return assignment
