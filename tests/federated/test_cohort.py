import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort

SIZES = [5, 9, 26, 1, 400, 33]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, 6), ({"sites_per_round": 4}, 4), ({"participation": 0.5}, 3), ({"participation": 0.01}, 1),
        ({"participation": 1.0}, 6), ({"participation": 0.26}, 2),
    ],
)  # fmt: skip
def test_the_size_of_a_cohort(keys: dict[str, Any], expected: int) -> None:
    config = Config(**keys)
    assert cohort.size(config, 6) == expected
    drawn = cohort.sample(config, SIZES, 3)
    assert len(drawn) == expected
    assert list(drawn) == sorted(drawn)
    assert set(drawn) <= set(range(6))
    total = sum(SIZES[site] for site in drawn)
    assert drawn == {site: SIZES[site] / total for site in drawn}


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [("examples", [1 / 14, 4 / 14, 9 / 14]), ("uniform", [1 / 3] * 3), ("sqrt", [1 / 6, 2 / 6, 3 / 6])],
)
def test_weights_follow_the_weighting(weighting: str, expected: list[float]) -> None:
    drawn = cohort.sample(Config(weighting=weighting), [1, 4, 9], 3)
    assert list(drawn.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keys", "share"),
    [
        ({}, 1), ({"sites_per_round": 2}, 2 / 5), ({"participation": 0.3}, 2 / 5),  # 1.5 sites are two, always
        ({"participation": 0.3, "sampling": "poisson"}, 0.3),
        ({"sites_per_round": 2, "sampling": "poisson"}, 2 / 5), ({"participation": 0.3, "sampling": "by_examples"}, 2 / 5),
    ],
)  # fmt: skip
def test_the_share_of_sites_that_take_part(keys: dict[str, Any], share: float) -> None:
    config = Config(num_sites=5, **keys)
    assert cohort.share(config) == cohort.probability(config, 5) == pytest.approx(share)


def test_a_cohort_is_a_function_of_seed_and_round() -> None:
    def cohorts(seed: int) -> list[dict[int, float]]:
        return [cohort.sample(Config(sites_per_round=3, seed=seed), SIZES, round_) for round_ in range(1, 30)]

    assert cohorts(1) == cohorts(1)
    assert cohorts(1) != cohorts(2)
    assert len({tuple(drawn) for drawn in cohorts(1)}) > 10, "the cohort varies from round to round"


@pytest.mark.parametrize("sampling", ["uniform", "by_examples"])
def test_sites_are_sampled_with_the_right_frequencies(sampling: str) -> None:
    config = Config(sites_per_round=1, sampling=sampling)
    sizes = [10, 20, 30, 40]
    counts = Counter(next(iter(cohort.sample(config, sizes, round_))) for round_ in range(4000))
    for site, size in enumerate(sizes):
        share = 0.25 if sampling == "uniform" else size / 100
        assert counts[site] / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("sampling", ["uniform", "by_examples"])
def test_the_expected_delta_of_a_cohort(sampling: str, count: int) -> None:
    """Sampled by examples, it is the mean of all sites, Σ n_k/n × delta_k, for any cohort size. Sampled uniformly and
    weighted by examples, it is the plain mean for one site, and the mean over the three pairs for two sites.
    """
    config = Config(sites_per_round=count, sampling=sampling)
    deltas, sizes = np.array([1.0, 10.0, 100.0]), np.array([1, 3, 6])
    pairs = np.mean([deltas[[a, b]] @ sizes[[a, b]] / sizes[[a, b]].sum() for a, b in ((0, 1), (0, 2), (1, 2))])
    expected = deltas @ sizes / 10 if sampling == "by_examples" else deltas.mean() if count == 1 else pairs
    means = []
    for round_ in range(4000):
        drawn = cohort.sample(config, sizes.tolist(), round_)
        assert sum(drawn.values()) == pytest.approx(1)
        means.append(sum(weight * deltas[site] for site, weight in drawn.items()))
    assert np.mean(means) == pytest.approx(expected, rel=0.07)


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=50), st.integers(1, 80), st.integers(1, 10**6))
def test_draws_by_examples_are_those_of_numpy(sizes: list[int], count: int, round_: int) -> None:
    config = Config(sites_per_round=min(count, len(sizes)), sampling="by_examples")
    rng = seeding.generator(config.seed, "cohort", round_)
    drawn = Counter(rng.choice(len(sizes), config.sites_per_round, p=np.array(sizes) / sum(sizes)).tolist())
    assert cohort.sample(config, sizes, round_) == {
        site: drawn[site] / config.sites_per_round for site in sorted(drawn)
    }


@pytest.mark.parametrize("keys", [{}, {"sites_per_round": 6}, {"participation": 0.95}])
def test_full_participation_samples_nothing(keys: dict[str, Any]) -> None:
    config = Config(**keys)
    assert cohort.sample(config, SIZES, 1) == {site: size / 474 for site, size in enumerate(SIZES)}
    assert cohort.is_everyone(config, 6)
    assert not cohort.is_everyone(dataclasses.replace(config, sites_per_round=5, participation=None), 6)


@pytest.mark.parametrize("keys", [{"sites_per_round": 6}, {"participation": 1.0}])
def test_as_many_draws_by_examples_as_sites_are_with_replacement(keys: dict[str, Any]) -> None:
    """Li et al. 2020, scheme I: K = N draws of weight 1/N each. Of 474 examples, 400 are at one site."""
    config = Config(sampling="by_examples", **keys)
    times = np.zeros(6)
    for round_ in range(500):
        weights = cohort.sample(config, SIZES, round_)
        for site, weight in weights.items():
            times[site] += weight * 6
        assert all(weight * 6 == pytest.approx(round(weight * 6)) for weight in weights.values())
        assert sum(weights.values()) == pytest.approx(1)
    assert not cohort.is_everyone(config, 6)
    shares = np.array(SIZES) / 474
    assert times.sum() == pytest.approx(3000)
    assert np.all(np.abs(times / 3000 - shares) < 4 * np.sqrt(shares * (1 - shares) / 3000))


@pytest.mark.parametrize(
    ("sizes", "num_workers", "loads"),
    [
        ([1, 1, 2], 2, [2, 2]),  # in the order of the sites: 3 and 1
        ([3, 3, 2, 2, 2], 2, [5, 7]),  # Graham's example: 3 2 2 and 3 2, although 3 3 and 2 2 2 would be even
        ([1, 2, 3, 4, 5, 6], 3, [7, 7, 7]),  # 6 1, 5 2, 4 3; in the order of the sites: 5, 7 and 9
        ([1, 1, 1, 1, 1, 10], 2, [5, 10]),  # in the order of the sites: 3 and 12
    ],
)
def test_the_largest_sites_are_assigned_first(sizes: list[int], num_workers: int, loads: list[int]) -> None:
    dealt = cohort.assign(sizes, range(len(sizes)), num_workers)
    assert sorted(sum(sizes[site] for site in sites) for sites in dealt) == loads


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=200), st.integers(1, 9), st.data())
def test_every_site_of_a_cohort_is_assigned_once_and_evenly(
    sizes: list[int], num_workers: int, data: st.DataObject
) -> None:
    drawn = sorted(data.draw(st.sets(st.integers(0, len(sizes) - 1), min_size=1)))
    dealt = cohort.assign(sizes, drawn, num_workers)
    assert len(dealt) == num_workers
    assert sorted(site for sites in dealt for site in sites) == drawn
    loads = [sum(sizes[site] for site in sites) for sites in dealt]
    # Graham 1969: within 4/3 − 1/3m of the optimum, which is at least an even share and the largest site.
    optimum = max(sum(loads) / num_workers, max(sizes[site] for site in drawn))
    if len(drawn) <= num_workers:
        assert dealt == [[site] for site in drawn] + [[]] * (num_workers - len(drawn)), (
            "site N on worker N under full participation"
        )
    assert max(loads) <= min(loads) + max(sizes[site] for site in drawn) or len(drawn) <= num_workers
    assert max(loads) <= 2 * optimum


@pytest.mark.parametrize(
    ("keys", "num_workers", "single"),
    [
        ({}, 6, True), ({}, 5, False), ({"sites_per_round": 2}, 2, True), ({"sites_per_round": 3}, 2, False),
        ({"baseline": "centralised"}, 1, True), ({"baseline": "local_only"}, 5, False),
        ({"sites_per_round": 6, "sampling": "by_examples"}, 6, True),
        # A worker may train more sites than the expected ones, or adds noise or masks to what its site sends.
        ({"participation": 0.5, "sampling": "poisson"}, 6, False),
        ({"dp_clip": 1.0, "dp_noise_multiplier": 1.0, "dp_delta": 1e-3, "weighting": "uniform"}, 6, False),
        ({"secure_aggregation": True}, 6, False),
    ],
)  # fmt: skip
def test_whether_workers_train_a_single_site_each(keys: dict[str, Any], num_workers: int, single: bool) -> None:
    assert cohort.single_site_per_worker(Config(**keys), 6, num_workers) == single


def test_as_many_workers_as_sites_train_one_each_in_the_order_of_the_sites() -> None:
    """Largest first would give site 2 to worker 0; messages and records say that worker N trains site N."""
    assert cohort.assign([1, 2, 3], [0, 1, 2], 3) == [[0], [1], [2]]
    assert cohort.assign([1, 2, 3], [1, 2], 3) == [[1], [2], []]
