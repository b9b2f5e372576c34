"""DP-FedAvg: clipping, noise, adaptive clipping and Poisson cohorts by hand; epsilons that are known."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import aggregation, cohort, rounds
from scaling_fl.federated.aggregation import private
from scaling_fl.federated.server import SGD
from tests import builders

SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [1, 4, 9, 15, 18, 27])]
KEYS: dict[str, Any] = {
    "num_sites": 7, "site_ids": [-1], "weighting": "uniform", "dp_clip": 2.0, "dp_noise_multiplier": 0.7,
    "dp_delta": 1e-3, "dp_seed": 5, "learning_rate": 0.02, "batch_size": 4, "optimiser": "sgd", "seed": 3,
}  # fmt: skip


def deltas(size: int) -> np.ndarray:
    """One for each site, of the lengths 0.5, 1, 1.5, …, 3.5."""
    values = np.random.default_rng(4).normal(size=(7, size))
    return (values / np.linalg.norm(values, axis=1, keepdims=True) * np.arange(1, 8)[:, None] / 2).astype(np.float32)


def combine(alone: Callable[..., Any], config: Config, module: Any, round_: int = 1) -> tuple[Any, torch.Tensor, Any]:
    """The combined delta of the sites of a round that send `deltas`, and what it was made by."""
    worker_sites, collectives, state = alone(config, module, SHARDS)
    combination: Any = aggregation.begin(worker_sites, collectives, state, round_)
    values = deltas(len(state.params))
    for site in worker_sites.participants(round_):
        row = torch.zeros(len(state.row))
        row[: len(state.params)] = torch.from_numpy(values[site.number])
        combination.add(site.number, row)
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    return combination, found, state


@pytest.mark.parametrize("keys", [{}, {"sampling": "poisson", "participation": 0.5}])
def test_the_private_mean_is_algorithm_1_of_mcmahan_et_al_2018(alone: Callable[..., Any], keys: dict[str, Any]) -> None:
    """Clipped to length 2, summed, noise of 0.7 × 2 on the sum, divided by q N = 7 or 3.5, whoever takes part."""
    config = Config.from_mapping(KEYS | keys)
    combination, found, _ = combine(alone, config, builders.bert())
    values = deltas(len(found)).astype(np.float64)
    chosen = [0, 1, 2, 3, 4, 5, 6]
    expected_sites = 7.0
    if keys:
        drawn = seeding.generator(3, "cohort", 1).random(7)
        chosen, expected_sites = [site for site in range(7) if drawn[site] < 0.5], 3.5
        assert 0 < len(chosen) < 7
        assert len(chosen) != expected_sites
    clipped = sum(values[site] * min(1, 2 / ((site + 1) / 2)) for site in chosen)
    of_noise = seeding.generator(5, "dp noise", 1).standard_normal(len(found)) * 0.7 * 2
    views = builders.flat_model().layout.views
    wanted = views(torch.from_numpy((clipped + of_noise) / expected_sites))
    for name, value in views(found).items():
        np.testing.assert_allclose(value.numpy(), wanted[name].numpy(), rtol=1e-4, atol=1e-5)
    assert combination.results["dp.clip"] == 2


def test_without_dp_seed_nobody_can_draw_the_noise_again(alone: Callable[..., Any]) -> None:
    """It doesn't follow from any seed: two runs of the same round differ by noise of √2 × 0.7 × 2 / 7."""
    config = Config.from_mapping(KEYS | {"dp_seed": None})
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    layout = worker_sites.resident.model.layout
    found = []
    for _ in range(2):
        combination: Any = aggregation.begin(worker_sites, collectives, state, 1)
        for site in range(7):
            combination.add(site, torch.zeros(len(state.row)))
        found.append(torch.cat([delta.clone() for _, delta in combination.combined()]))
    difference = torch.cat([view.flatten() for view in layout.views(found[0] - found[1]).values()])
    assert difference.std().item() == pytest.approx(2**0.5 * 0.7 * 2 / 7, rel=0.05)
    assert (difference == 0).float().mean() < 0.01


def test_the_clip_follows_a_quantile_as_in_andrew_et_al_2021(alone: Callable[..., Any]) -> None:
    """Four of seven deltas are no longer than 2.1: b = ½ + (4 × ½ − 3 × ½ + noise) / 7; the noise of the deltas is z_Δ.

    A site changes that sum by ½ at most, which the 2 in (2 σ_b)⁻² stands for.
    """
    config = Config.from_mapping(
        KEYS | {"dp_clip": 2.1, "dp_clip_quantile": 0.3, "dp_count_noise": 1.5, "dp_clip_rate": 0.4}
    )
    _, found, state = combine(alone, config, builders.bert())
    size = len(state.params)
    draws = seeding.generator(5, "dp noise", 1).standard_normal(size + 16)
    b = 0.5 + (4 * 0.5 - 3 * 0.5 + 1.5 * draws[size]) / 7
    assert found[size].item() == pytest.approx(0.4 * (b - 0.3), rel=1e-4)
    assert not found[size + 1 :].any()
    z_delta = (0.7**-2 - 3.0**-2) ** -0.5
    clipped = sum(deltas(size)[site].astype(np.float64) * min(1, 4.2 / (site + 1)) for site in range(7))
    layout = builders.flat_model().layout
    views = layout.views(found[:size])
    expected = layout.views(torch.from_numpy((clipped + draws[:size] * z_delta * 2.1) / 7))
    for name, value in views.items():
        np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=1e-4, atol=1e-5)
    SGD().step(state, found, slice(0, len(found)))
    assert private.current_clip(config, state, 1e9) == pytest.approx(2.1 * math.exp(-0.4 * (b - 0.3)), rel=1e-4)


def test_a_delta_as_long_as_the_clip_counts_as_one_that_is_not_clipped(alone: Callable[..., Any]) -> None:
    """b_k = 1 if ‖delta_k‖ ≤ C: the lengths 5, 5 + 2⁻¹⁰ and five of 0 are six ones at C = 5."""
    config = Config.from_mapping(
        KEYS | {"dp_clip": 5.0, "dp_clip_quantile": 0.3, "dp_count_noise": 1.5, "dp_clip_rate": 0.4}
    )
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    combination: Any = private.begin(worker_sites, collectives, state, 1)
    for site, lengths in enumerate([(3.0, 4.0), (5 + 2**-10, 0.0), *[(0.0, 0.0)] * 5]):
        row = torch.zeros(len(state.row))
        row[:2] = torch.tensor(lengths)
        combination.add(site, row)
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    size = len(state.params)
    noise = 1.5 * seeding.generator(5, "dp noise", 1).standard_normal(size + 16)[size]
    b = 0.5 + (6 * 0.5 - 1 * 0.5 + noise) / 7
    assert found[size].item() == pytest.approx(0.4 * (b - 0.3), rel=1e-4)


def test_a_clip_fits_into_the_sum_whatever_the_noise_and_the_share_of_sites(alone: Callable[..., Any]) -> None:
    """A delta as long as the clip is divided by q N: at q = 1/40 that is more than ten times the noise of 0.7."""
    keys = {"dp_clip_quantile": 0.0, "dp_count_noise": 3.0, "sampling": "poisson", "participation": 0.025}
    config = Config.from_mapping(KEYS | keys)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    assert len(state.extra) == 16, "the quantile 0 is one, too"
    assert private.begin(worker_sites, collectives, state, 1).clip == 2.0
    state.extra[0] = 600.0
    assert private.begin(worker_sites, collectives, state, 1).clip == pytest.approx(0.99 * 2**14 / 40)


def test_the_noise_of_the_count_is_a_twentieth_of_the_sites_and_no_less_than_that_of_the_deltas() -> None:
    """With half of that or less, no noise of the deltas would be enough."""
    config = Config.from_mapping(KEYS | {"dp_clip_quantile": 0.5})
    assert private.count_noise(config, 100.0) == 5
    assert private.count_noise(config, 7.0) == 0.7
    assert private.deltas_noise(config, 7.0) == pytest.approx((0.7**-2 - 1.4**-2) ** -0.5)
    assert (
        private.count_noise(Config.from_mapping(KEYS | {"dp_clip_quantile": 0.5, "dp_count_noise": 0.4}), 100.0) == 0.4
    )


def test_the_clip_finds_the_quantile(alone: Callable[..., Any]) -> None:
    """Lengths are 0.5 to 3.5: after many rounds with little noise, the clip is at the median, 2."""
    config = Config.from_mapping(
        KEYS | {"dp_clip": 0.1, "dp_clip_quantile": 0.5, "dp_noise_multiplier": 0.01, "dp_count_noise": 0.01}
    )
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    values = deltas(len(state.params))
    clips = []
    for round_ in range(1, 120):
        combination: Any = private.begin(worker_sites, collectives, state, round_)
        clips.append(combination.clip)
        for site in range(7):
            row = torch.zeros(len(state.row))
            row[: len(state.params)] = torch.from_numpy(values[site])
            combination.add(site, row)
        for chunk, delta in combination.combined():
            SGD().step(state, delta, chunk)
    assert 1.7 < np.mean(clips[-20:]) < 2.3


def test_a_clip_that_grows_without_end_stops_where_its_noise_still_fits(alone: Callable[..., Any]) -> None:
    """All deltas are longer than any clip, so that it grows by exp(40 × 0.9) and more a round; the sum must not overflow."""
    config = Config.from_mapping(KEYS | {"dp_clip_quantile": 0.9, "dp_clip_rate": 40.0, "dp_count_noise": 0.5})
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    clips = []
    for round_ in range(1, 25):  # log C passes 709, of which the exponential is infinite
        combination: Any = private.begin(worker_sites, collectives, state, round_)
        clips.append(combination.clip)
        for site in range(7):
            combination.add(site, torch.full((len(state.row),), 1e4))
        for chunk, delta in combination.combined():
            SGD().step(state, delta, chunk)
    z_delta = (0.7**-2 - 1.0**-2) ** -0.5
    assert state.extra[0] > 709
    assert clips[-1] == clips[1] == pytest.approx(0.99 * 2**14 / (10 * z_delta))
    assert state.params.isfinite().all()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sampling": "poisson", "participation": 0.6},
        {"dp_clip_quantile": 0.4, "dp_count_noise": 1.2, "dp_clip_rate": 0.7},
    ],
)
def test_three_rounds_of_unequal_sites_are_a_numpy_loop(alone: Callable[..., Any], keys: dict[str, Any]) -> None:
    """What the server and its clip are after each round; sites send other deltas in each."""
    config = Config.from_mapping(KEYS | keys)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    layout, size = worker_sites.resident.model.layout, len(state.params)
    params, clip = state.params.numpy().astype(np.float64), 2.0
    q, adaptive = keys.get("participation", 1.0), "dp_clip_quantile" in keys
    z = (0.7**-2 - 2.4**-2) ** -0.5 if adaptive else 0.7
    clips = set()
    for round_ in (1, 2, 3):
        sent = deltas(size) * np.roll(np.linspace(0.3, 2.5, 7), round_)[:, None].astype(np.float32)
        combination: Any = private.begin(worker_sites, collectives, state, round_)
        assert combination.results["dp.clip"] == pytest.approx(clip, rel=1e-4)
        cohort_ = [site.number for site in worker_sites.participants(round_)]
        for site in cohort_:
            row = torch.zeros(len(state.row))
            row[:size] = torch.from_numpy(sent[site])
            combination.add(site, row)
        for chunk, delta in combination.combined():
            SGD().step(state, delta, chunk)

        lengths = np.linalg.norm(sent.astype(np.float64), axis=1)
        draws = seeding.generator(5, "dp noise", round_).standard_normal(size + 16)
        total = sum(sent[site] * min(1, clip / lengths[site]) for site in cohort_) + draws[:size] * z * clip
        params = params - total / (q * 7)
        clips.add(clip)
        if adaptive:
            below = sum(0.5 if lengths[site] <= clip else -0.5 for site in cohort_)
            clip *= math.exp(-0.7 * (0.5 + (below + 1.2 * draws[size]) / 7 - 0.4))
        expected = layout.views(torch.from_numpy(params))
        for name, value in layout.views(state.params).items():
            np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=1e-4, atol=2e-5)
    assert len(clips) == (3 if adaptive else 1)


def final(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config) -> Any:
    torch.set_num_threads(1)
    worker_sites, collectives, state = builders.worker(
        folder, config, builders.bert(dropout=0.2), SHARDS, rank, num_workers, memory
    )
    seen: list[dict[str, float]] = []
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    collectives.close()
    return state.row.numpy().copy(), seen


def test_the_result_does_not_depend_on_the_workers_and_the_noise_is_drawn_once(
    run_distributed: Any, tmp_path: Path
) -> None:
    config = Config.from_mapping(
        KEYS | {"num_rounds": 3, "sampling": "poisson", "participation": 0.6, "dp_clip_quantile": 0.5, "dp_clip": 0.3}
    )
    builders.resident(tmp_path, config, builders.bert())
    ((alone, seen),) = run_distributed(final, 1, config)
    assert [results["dp.epsilon_pld"] for results in seen[1:]] == sorted(r["dp.epsilon_pld"] for r in seen[1:])
    assert len({results["dp.clip"] for results in seen[1:]}) == 3
    for row, _ in run_distributed(final, 3, config):
        assert np.array_equal(row, alone)


def test_a_round_without_sites_is_noise(alone: Callable[..., Any]) -> None:
    seed = next(seed for seed in range(100) if seeding.generator(seed, "cohort", 1).random(7).min() > 0.1)
    config = Config.from_mapping(
        KEYS | {"sampling": "poisson", "participation": 0.1, "seed": seed, "num_rounds": 1, "num_local_epochs": 1}
    )
    assert cohort.sample(config, [len(shard) for shard in SHARDS], 1) == {}
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    before, seen = state.params.clone(), list[dict[str, float]]()
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    layout = worker_sites.resident.model.layout
    moved = torch.cat([view.flatten() for view in layout.views(before - state.params).values()]).double()
    assert moved.std().item() == pytest.approx(0.7 * 2 / 0.7, rel=0.05)
    assert "train.loss" not in seen[-1]
    assert seen[-1]["dp.epsilon_rdp"] > 0


def test_poisson_cohorts_without_privacy_are_weighted_as_usual() -> None:
    config = Config.from_mapping({"num_sites": 4, "site_ids": [-1], "sampling": "poisson", "participation": 0.5})
    sizes, seen = [1, 2, 3, 4], []
    for round_ in range(400):
        weights = cohort.sample(config, sizes, round_)
        seen.append(len(weights))
        assert weights == {site: sizes[site] / sum(sizes[s] for s in weights) for site in weights}
    # Binomial with n = 4, q = ½: mean 2, variance 1.
    assert np.mean(seen) == pytest.approx(2, abs=5 * math.sqrt(1 / 400))
    assert np.var(seen) == pytest.approx(1, abs=0.3)
    assert {0, 4} <= set(seen)


def test_no_noise_reaches_what_no_site_changes(alone: Callable[..., Any]) -> None:
    """Frozen parameters, and the gaps between tensors, which are no part of a checkpoint."""
    module = builders.bert()
    module.bert.embeddings.requires_grad_(False)
    config = Config.from_mapping(KEYS)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    layout = worker_sites.resident.model.layout
    combination: Any = private.begin(worker_sites, collectives, state, 1)
    for site in range(7):
        combination.add(site, torch.zeros(len(state.row)))
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    views = layout.views(found)
    frozen = {name for name in views if name.startswith("bert.embeddings")}
    assert frozen
    for name, view in views.items():
        assert bool(view.any()) == (name not in frozen), name
        view.zero_()
    assert not found.any(), "nothing is left in the gaps"


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"fairness_q": 1.0, "optimiser": "sgd"}, {"aggregation": "geometric_median"}, {"secure_aggregation": True},
        {"fednova": True, "optimiser": "sgd"},
    ],
)  # fmt: skip
def test_a_round_in_which_nobody_takes_part_changes_nothing(alone: Callable[..., Any], keys: dict[str, Any]) -> None:
    seed = next(seed for seed in range(100) if seeding.generator(seed, "cohort", 1).random(7).min() > 0.1)
    config = Config.from_mapping(
        {"num_sites": 7, "site_ids": [-1], "sampling": "poisson", "participation": 0.1, "seed": seed, "num_rounds": 1}
        | keys
    )
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    before = state.params.clone()
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
    assert torch.equal(state.params, before)
