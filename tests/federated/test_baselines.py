"""The baselines of federated averaging, on the same examples for as many epochs."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import rounds
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.server import SGD
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import WorkerSites
from tests import builders

SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [5, 14])]
KEYS = {"num_rounds": 3, "optimiser": "sgd", "learning_rate": 0.2, "batch_size": 4, "num_local_epochs": 2}


def train_alone(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> tuple[Any, ...]:
    """Run a worker; return the last round's metrics, each site's parameters, and the server's parameters."""
    torch.set_num_threads(1)
    config = Config(baseline="local_only", **KEYS)
    worker_sites, collectives, state = builders.worker(
        folder, config, builders.bert(dropout=0.2), SHARDS, rank, num_workers, memory
    )
    seen: list[dict[str, Any]] = []
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    collectives.barrier()
    own = [
        Site(number, SHARDS[number], worker_sites.resident).own_params(state.params).numpy().copy()
        for number in range(3)
    ]
    evaluated = [evaluate(worker_sites.resident, torch.from_numpy(params), 0, 1) for params in own]
    accuracies = [sum(np.trace(batch.confusion) for batch in batches) / 23 for batches in evaluated]
    losses = [sum(batch.loss_sum for batch in batches) / 23 for batches in evaluated]
    together = sum(batch.confusion for batches in evaluated for batch in batches)
    assert state.confusion["validation"].tolist() == together.tolist(), "a sum over the sites' models"
    server = state.params.numpy().copy()
    collectives.close()
    return seen[-1], own, server, accuracies, losses


@pytest.mark.parametrize("num_workers", [1, 2])
def test_local_only_equals_separate_training_of_each_site(
    run_distributed: Any, tmp_path: Path, num_workers: int
) -> None:
    config = Config(**KEYS)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.2))
    start = resident.model.flat.clone()
    torch.set_num_threads(1)
    expected = []
    for number, shard in enumerate(SHARDS):
        params = start.clone()
        for round_ in (1, 2, 3):
            Site(number, shard, resident).train(params, round_)
            params = params - resident.model.flat  # delta
        expected.append(params)
    for results, own, server, accuracies, losses in run_distributed(train_alone, num_workers):
        for site in range(3):
            torch.testing.assert_close(torch.from_numpy(own[site]), expected[site], rtol=1e-5, atol=1e-6)
        assert np.array_equal(server, start.numpy()), "nothing is aggregated"
        assert not any(name.startswith("bytes.") for name in results), "and nothing travels"
        assert len({round(loss, 4) for loss in losses}) == 3, "equal values would hide a wrong mean"
        assert results["validation.loss"] == pytest.approx(np.mean(losses))
        assert results["validation.accuracy"] == pytest.approx(np.mean(accuracies))
        assert results["validation.worst_site.accuracy"] == pytest.approx(min(accuracies))
        assert results["validation.best_site.accuracy"] == pytest.approx(max(accuracies))


@pytest.mark.parametrize(("keys", "examples"), [({}, 40), ({"sites_per_round": 2, "seed": 5}, None)])
def test_centralised_equals_one_site_with_the_cohorts_examples(
    tmp_path: Path, keys: dict[str, Any], examples: int | None
) -> None:
    """Hence it makes as many passes over the same examples as the sites would."""
    config = Config(baseline="centralised", **KEYS, **keys)
    federated = dataclasses.replace(config, baseline=None)
    (tmp_path / "a").mkdir()
    worker_sites, collectives, state = builders.worker(tmp_path / "a", config, builders.bert(dropout=0.2), SHARDS)
    expected, start = state.params.clone(), state.params.clone()
    for round_ in (1, 2, 3):
        together = [
            site.shard
            for site in WorkerSites(
                **vars(worker_sites) | {"resident": dataclasses.replace(worker_sites.resident, config=federated)}
            ).participants(round_)
        ]
        union = np.sort(np.concatenate(together))
        assert examples is None or len(union) == examples
        delta, trained = Site(0, union, worker_sites.resident).train(expected, round_)
        assert trained.count == 2 * sum(map(len, together))
        expected = expected - delta
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
    collectives.close()
    torch.testing.assert_close(state.params, expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(expected, start, atol=1e-3)
