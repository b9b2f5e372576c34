"""The result doesn't depend on which worker trains which site."""

import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl.config.schema import Config
from scaling_fl.data import partitioners
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import cohort, rounds, server
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import Shards, WorkerSites, write_shards
from scaling_fl.models import base
from tests import builders

# Forty examples on seven sites of 1 to 13 each.
SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [1, 4, 9, 15, 18, 27])]


class RandomAssignment(WorkerSites):
    """Random assignment of sites to workers, in random order; some workers may have none."""

    def participants(self, round_: int) -> Any:
        drawn = list(cohort.sample(self.resident.config, self.shards.sizes, round_))
        rng = np.random.default_rng([round_, self.num_workers])
        one_each = len(drawn) <= self.num_workers
        workers = rng.permutation(self.num_workers) if one_each else rng.integers(self.num_workers, size=len(drawn))
        for site, worker in zip(rng.permutation(drawn), workers, strict=False):
            if worker == self.rank:
                yield Site(int(site), self.shards[site], self.resident)


def place(folder: Path, num_workers: int, config: Config, shuffled: bool) -> Path:
    return folder / f"{num_workers} {config.num_rounds} {shuffled}"


def final(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config, shuffled: bool = False
) -> np.ndarray:
    """In a worker process: the server's parameters after all rounds."""
    torch.set_num_threads(1)
    folder = place(folder, num_workers, config, shuffled)
    module = builders.bert(dropout=0.2)
    base.freeze(module, config)
    worker_sites, collectives, state = builders.worker(folder, config, module, SHARDS, rank, num_workers, memory)
    if shuffled:
        worker_sites = RandomAssignment(**vars(worker_sites))
    rounds.run(config, worker_sites, collectives, state, server.optimiser(config), lambda *_: None)
    collectives.close()
    return state.params.numpy().copy()


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"exact_sum": False, "optimiser": "sgd"}, {"sites_per_round": 3}, {"participation": 0.6, "sampling": "by_examples"},
        {"sites_per_round": 2, "server_optimiser": "adam"}, {"sites_per_round": 1},
        {
            "num_local_epochs": 1, "num_local_steps": 3, "weighting": "sqrt", "proximal_mu": 0.5, "server_momentum": 0.9,
            "server_nesterov": True,
        },
        {"num_local_epochs": 1, "local_epochs_range": (1, 3), "fednova": True, "optimiser": "sgd", "sites_per_round": 3},
        {"feddyn_alpha": 0.5, "weighting": "uniform", "sites_per_round": 3},
        {"scaffold": "II", "optimiser": "sgd", "weighting": "uniform", "sites_per_round": 3},
        {
            "scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "sites_per_round": 3, "upload": "topk",
            "attack": "sign_flip", "attackers": 2,
        },
        {"trainable": "pooler|classifier", "attack": "label_flip", "attackers": 3},
        {"fairness_q": 2.0, "optimiser": "sgd", "sites_per_round": 3, "upload": "int8", "download": "bf16"},
        {
            "aggregation": "krum", "faulty_sites": 1, "krum_sites": 2, "weighting": "uniform", "attack": "gaussian",
            "attackers": 2, "sites_per_round": 6,
        },
    ],
)  # fmt: skip
def test_any_number_of_workers_gives_the_same_result(
    run_distributed: Any, tmp_path: Path, keys: dict[str, Any]
) -> None:
    config = Config(
        **{"num_sites": 7, "num_rounds": 3, "learning_rate": 0.02, "batch_size": 4, "num_local_epochs": 2} | keys
    )

    def run(num_workers: int, config: Config, shuffled: bool = False) -> list[np.ndarray]:
        builders.resident(
            place(tmp_path, num_workers, config, shuffled), config, builders.bert()
        )  # writes the token stores
        results: list[np.ndarray] = run_distributed(final, num_workers, config, shuffled)
        return results

    (alone,) = run(1, config)
    assert not np.allclose(alone, run(1, dataclasses.replace(config, num_rounds=1))[0], atol=1e-3)
    for num_workers, shuffled in ((2, False), (4, False), (1, True), (3, True)):
        for params in run(num_workers, config, shuffled):
            if config.exact_sum:
                assert np.array_equal(params, alone)
            else:
                np.testing.assert_allclose(params, alone, rtol=1e-5, atol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 5), st.data())
def test_the_workers_train_each_site_of_a_cohort_once(
    tmp_path: Path, sizes: list[int], num_workers: int, round_: int, data: st.DataObject
) -> None:
    sites_per_round = data.draw(st.integers(1, len(sizes)))
    config = Config(sites_per_round=sites_per_round, sampling=data.draw(st.sampled_from(["uniform", "by_examples"])))
    parts = np.split(np.random.default_rng(1).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    write_shards(tmp_path, parts)
    resident: Any = types.SimpleNamespace(config=config)  # no model: nothing is trained
    trained = [
        (site.number, site.shard.tolist())
        for rank in range(num_workers)
        for site in WorkerSites(resident, Shards(tmp_path), rank, num_workers).participants(round_)
    ]
    drawn = cohort.sample(config, sizes, round_)
    assert sorted(trained) == [(site, parts[site].tolist()) for site in sorted(drawn)]
    everyone = [
        site.number
        for rank in range(num_workers)
        for site in WorkerSites(resident, Shards(tmp_path), rank, num_workers).everyone()
    ]
    assert sorted(everyone) == list(range(len(sizes)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
def test_shards_round_trip_through_their_files(tmp_path: Path, sizes: list[int]) -> None:
    parts = np.split(np.random.default_rng(1).permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    write_shards(tmp_path, parts)
    shards = Shards(tmp_path)
    assert list(shards.sizes) == sizes
    for site, part in enumerate(parts):
        assert np.array_equal(shards[site], part)


@pytest.mark.parametrize("iid", [True, False])
@pytest.mark.parametrize(("count", "num_sites"), [(10, 3), (7, 7), (100, 8), (5, 1)])
def test_shards_are_a_partition_with_sizes_that_differ_by_at_most_one(iid: bool, count: int, num_sites: int) -> None:
    labels = builders.texts_and_labels(count)[1]
    owners = partitioners.iid(labels, num_sites, seed=3) if iid else partitioners.by_label(labels, num_sites)
    shards = partitioners.shards(owners, num_sites)
    assert len(shards) == num_sites
    assert sorted(np.concatenate(shards).tolist()) == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
