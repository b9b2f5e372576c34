"""A model's buffers, here of a batch norm: floats are averaged, integers stay, and no server optimiser sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import aggregation, server
from tests import builders
from tests.federated.training import SHARDS, WHOLE_SHARD, by_name, digest, train_federated


def test_all_workers_agree_bitwise_and_integer_buffers_stay(
    run_distributed: Callable[..., Any], tmp_path: Path
) -> None:
    config = Config(
        site_ids=(-1,) * 3, num_rounds=2, learning_rate=0.02, batch_size=7
    )  # batch norm allows no batch of one
    builders.resident(tmp_path, config, module_with_buffers())
    views = run_distributed(final_state_of_a_worker, 3, config)
    assert len({view["state"] for view in views}) == 1
    assert len({view["model"] for view in views}) == 1
    for view in views:
        assert view["integer"].dtype == np.int64
        assert view["integer"] == 7, "an integer buffer keeps the server's value"
        # With momentum 1 a site's running mean is that of its last batch, so it moves; the server averages it.
        assert not np.array_equal(view["running_mean"], np.zeros(16))
    assert len({view["own_delta"] for view in views}) == 3, "the sites differ, so agreement means something"


def module_with_buffers() -> Any:
    """A BERT with a batch norm before its head: float and integer buffers, both persistent."""
    module = builders.bert()
    module.dropout = torch.nn.BatchNorm1d(16, momentum=1.0)
    module.dropout.num_batches_tracked.fill_(7)
    return module


def final_state_of_a_worker(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config
) -> dict[str, Any]:
    worker = builders.worker(folder, config, module_with_buffers(), SHARDS, rank, num_workers, memory)
    worker_sites, collectives, state = worker
    resident = worker_sites.resident
    (own,) = worker_sites.participants(1)
    own_delta = digest(own.train(state.params, 1)[0])
    train_federated(config, *worker)
    resident.model.load(state.params)
    collectives.close()
    named = dict(resident.model.module.named_buffers())
    return {
        "state": digest(state.params),
        "model": digest(resident.model.flat),
        "own_delta": own_delta,
        "integer": named["dropout.num_batches_tracked"].numpy().copy(),
        "running_mean": named["dropout.running_mean"].numpy().copy(),
    }


def test_float_buffers_are_averaged_and_never_passed_to_a_server_optimiser(alone: Callable[..., Any]) -> None:
    config = Config(site_ids=(-1,) * 3, num_rounds=1, learning_rate=0.02, **WHOLE_SHARD)
    worker_sites, collectives, state = alone(config, module_with_buffers(), SHARDS)
    resident = worker_sites.resident
    start = by_name(resident, state.params.clone())
    expected = torch.zeros(16)
    for site in worker_sites.participants(1):
        delta, _ = site.train(state.params, 1)
        after = by_name(resident, state.params - delta)["dropout.running_mean"]
        expected += after * site.num_examples / 40

    combination = aggregation.begin(worker_sites, collectives, state, 1)
    for site in worker_sites.participants(1):
        combination.add(site.number, site.train(state.params, 1)[0])
    for part, delta in combination.combined():
        server.SGD(learning_rate=0.0).step(state, delta, part)
    end = by_name(resident, state.params)
    torch.testing.assert_close(end["dropout.running_mean"], expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(end["classifier.weight"], start["classifier.weight"]), "a rate of 0 moves no parameter"


@pytest.mark.parametrize(
    "keys",
    [
        {"server_momentum": 0.9}, {"server_optimiser": "adam"}, {"server_optimiser": "yogi"}, {"server_optimiser": "adagrad"},
        {"feddyn_alpha": 0.1, "weighting": "uniform"}, {"fairness_q": 1.0, "optimiser": "sgd"},
        {"scaffold": "II", "optimiser": "sgd", "weighting": "uniform"},
    ],
)  # fmt: skip
def test_every_method_takes_the_plain_mean_of_float_buffers(alone: Callable[..., Any], keys: dict[str, Any]) -> None:
    """Of the running mean of each site's one batch, which the server's model determines."""
    config = Config(site_ids=(-1,) * 3, num_rounds=1, learning_rate=0.02, **WHOLE_SHARD, **keys)
    worker_sites, collectives, state = alone(config, module_with_buffers(), SHARDS)
    resident, optimiser = worker_sites.resident, server.optimiser(config)
    combination: Any = aggregation.begin(worker_sites, collectives, state, 1)
    expected, found = torch.zeros(16), np.zeros(3)
    for site in worker_sites.participants(1):
        row = site.train(state.params, 1, state.extra)[0]
        after = by_name(resident, state.params - row[: len(state.params)])["dropout.running_mean"]
        expected += after * combination.weights[site.number]
        found[site.number] = combination.weights[site.number]
        combination.add(site.number, row)
    for part, delta in combination.combined():
        optimiser.step(state, delta, part)
    assert found.sum() == pytest.approx(1)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(by_name(resident, state.params)["dropout.running_mean"], expected, rtol=1e-4, atol=1e-6)
