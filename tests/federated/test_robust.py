"""Robust aggregation against the papers' definitions, by plain loops over unequal deltas, and by any number of workers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed
from scaling_fl.federated import aggregation
from scaling_fl.federated.aggregation import robust
from tests import builders

SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [1, 4, 9, 15, 18, 27])]
SIZES = [len(shard) for shard in SHARDS]


def deltas(size: int) -> np.ndarray:
    """One for each of the seven sites, of different lengths; site 2 is far away from the others."""
    rng = np.random.default_rng(4)
    values = rng.normal(0.3, 1, (7, size)) * rng.uniform(0.5, 1.5, (7, 1))
    values[2] = -40 + values[2]
    return values.astype(np.float32)


def combine(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config) -> np.ndarray:
    """In a worker process: what all workers yield together, for the deltas of the sites of each."""
    torch.set_num_threads(1)
    worker_sites, collectives, state = builders.worker(
        folder, config, builders.bert(), SHARDS, rank, num_workers, memory
    )
    robust._BLOCK = 7 * 1000  # several blocks, of which the last is shorter
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    for site in worker_sites.participants(1):
        combination.add(site.number, torch.from_numpy(deltas(len(state.row))[site.number]))
    if rank == 0:
        state.row.zero_()
    collectives.barrier()
    for chunk, delta in combination.combined():
        state.row[chunk] = delta
    collectives.barrier()
    result = state.row.numpy().copy()
    collectives.close()
    return result


def krum(values: np.ndarray, faulty: int, keep: int) -> np.ndarray:
    """Blanchard et al. 2017, section 4, one distance at a time."""
    scores = []
    for i, one in enumerate(values):
        others = sorted(float(((one - other) ** 2).sum()) for j, other in enumerate(values) if j != i)
        scores.append(sum(others[: len(values) - faulty - 2]))
    return values[sorted(range(len(values)), key=scores.__getitem__)[:keep]].mean(axis=0)


def geometric_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weiszfeld's iterations on the points themselves."""
    point = np.average(values, axis=0, weights=weights)
    for _ in range(500):
        pulls = weights / np.maximum(np.linalg.norm(values - point, axis=1), 1e-6)
        point = (pulls[:, None] * values).sum(axis=0) / pulls.sum()
    return point


UNIFORM = {"weighting": "uniform"}
CASES: list[tuple[dict[str, Any], Any]] = [
    ({"aggregation": "median"} | UNIFORM, lambda v: np.array([sorted(column)[3] for column in v.T])),
    (
        {"aggregation": "trimmed_mean", "faulty_sites": 2} | UNIFORM,
        lambda v: np.array([sum(sorted(column)[2:5]) / 3 for column in v.T]),
    ),
    ({"aggregation": "krum", "faulty_sites": 2} | UNIFORM, lambda v: krum(v, 2, 1)),
    ({"aggregation": "krum", "faulty_sites": 1, "krum_sites": 3} | UNIFORM, lambda v: krum(v, 1, 3)),
    ({"aggregation": "geometric_median"}, lambda v: geometric_median(v, np.array(SIZES) / 40)),
]


@pytest.mark.parametrize(("keys", "by_hand"), CASES, ids=lambda value: "-".join(value) if type(value) is dict else "")
def test_it_is_what_the_paper_defines_and_bitwise_the_same_by_any_number_of_workers(
    run_distributed: Any, keys: dict[str, Any], by_hand: Any
) -> None:
    config = Config.from_mapping({"num_sites": 7, "site_ids": [-1]} | keys)
    (alone,) = run_distributed(combine, 1, config)
    values = deltas(len(alone))
    np.testing.assert_allclose(alone, by_hand(values.astype(np.float64)), rtol=1e-5, atol=1e-5)
    honest = np.delete(values, 2, axis=0).mean(axis=0)
    assert np.linalg.norm(alone - honest) < np.linalg.norm(values.mean(axis=0) - honest) / 2
    for result in run_distributed(combine, 3, config):
        assert np.array_equal(result, alone)


def test_the_geometric_median_of_three_points_in_a_plane() -> None:
    """At the Fermat point of an equilateral triangle, its centre; a point of half the weight is the median itself."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
    found = robust.geometric_median_weights(points @ points.T, np.full(3, 1 / 3))
    np.testing.assert_allclose(found @ points, [0.5, np.sqrt(0.75) / 3], atol=1e-6)
    found = robust.geometric_median_weights(points @ points.T, np.array([0.25, 0.6, 0.15]))
    np.testing.assert_allclose(found @ points, [1.0, 0.0], atol=1e-4)


@pytest.mark.parametrize(("faulty", "keep"), [(1, 1), (2, 3), (3, 2)])
def test_krums_scores_are_of_distances_and_not_of_lengths_or_angles(faulty: int, keep: int) -> None:
    """Deltas of one direction and very different lengths, whose inner products are as large as their squares."""
    rng = np.random.default_rng(11)
    lengths = np.array([9.0, 1.0, 1.25, 4.0, 1.125, 12.0, 5.5])
    values = lengths[:, None] * np.ones(20) + rng.normal(0, 0.05, (7, 20))
    weights = robust.krum_weights(values @ values.T, faulty, keep)
    assert weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(weights @ values, krum(values, faulty, keep), rtol=1e-9)


def test_equal_deltas_have_no_distance() -> None:
    products = np.full((5, 5), 3.0)
    assert robust.geometric_median_weights(products, np.full(5, 0.2)) == pytest.approx(np.full(5, 0.2))
    assert robust.krum_weights(products, 1, 1).tolist() == [1, 0, 0, 0, 0]


def test_a_delta_that_is_not_finite_stops_the_job(tmp_path: Path) -> None:
    config = Config.from_mapping({"num_sites": 7, "site_ids": [-1], "aggregation": "median"} | UNIFORM)
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    for site in range(7):
        delta = torch.zeros(len(state.row))
        delta[5] = float("nan") if site in (1, 4) else 0.0
        combination.add(site, delta)
    with pytest.raises(JobFailed, match="the parameters of sites 1 and 4 are no longer finite"):
        list(combination.combined())
    collectives.close()


def test_only_the_cohort_is_combined(tmp_path: Path) -> None:
    """The deltas of an earlier round stay on disk; they don't count."""
    config = Config.from_mapping(
        {"num_sites": 7, "site_ids": [-1], "aggregation": "median", "sites_per_round": 3} | UNIFORM
    )
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    cohorts = []
    for round_ in (1, 2):
        combination = aggregation.begin(worker_sites, collectives, state, round_)
        cohorts.append([site.number for site in worker_sites.participants(round_)])
        for site in cohorts[-1]:
            combination.add(site, torch.full((len(state.row),), float(10 * round_ + site)))
        median = torch.cat([delta.clone() for _, delta in combination.combined()])
        assert torch.equal(median, torch.full_like(median, 10 * round_ + sorted(cohorts[-1])[1]))
    assert cohorts[0] != cohorts[1]
    collectives.close()


def test_float_buffers_and_frozen_parameters_are_combined_too(tmp_path: Path) -> None:
    """Whatever stands behind the trained parameters in the row."""
    config = Config.from_mapping({"num_sites": 7, "site_ids": [-1], "aggregation": "median"} | UNIFORM)
    module = builders.bert()
    module.bert.embeddings.requires_grad_(False)
    worker_sites, collectives, state = builders.worker(tmp_path, config, module, SHARDS)
    assert state.trained < len(state.row)
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    for site in range(7):
        combination.add(site, torch.full((len(state.row),), float(site**2)))
    ((chunk, delta),) = combination.combined()
    assert (chunk, delta.unique().tolist()) == (slice(0, len(state.row)), [9.0])
    collectives.close()


def test_a_config_with_aggregation_mean_has_the_weighted_mean(tmp_path: Path) -> None:
    config = Config.from_mapping({"num_sites": 7, "site_ids": [-1]})
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    values = deltas(len(state.row))
    for site in range(7):
        combination.add(site, torch.from_numpy(values[site]))
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    expected = np.average(values.astype(np.float64), axis=0, weights=SIZES)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    collectives.close()
