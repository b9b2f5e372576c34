"""Numerical guarantees on unequal shards, each against an expectation derived here from plain torch."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.distributed.shared_memory import SharedMemory
from tests import builders
from tests.federated.training import SHARDS, WHOLE_SHARD, by_name, digest, train_federated


def assert_same_movement(
    actual: dict[str, torch.Tensor], expected: torch.nn.Module, start: torch.nn.Module, share: float = 1e-4
) -> None:
    """Each tensor is where it should be, up to `share` of the distance that it moved (over nine seeds: up to 7 × 10⁻⁶).

    A bound on single values would hold by luck: AdamW divides a gradient by its own size, rounding errors included.
    """
    parameters = {name: parameter.detach() for name, parameter in expected.named_parameters()}
    assert {name for name, tensor in actual.items() if tensor.is_floating_point()} <= parameters.keys()
    for name, before in start.named_parameters():
        if not before.requires_grad:  # a base beside adapters isn't among the values
            assert torch.equal(actual.get(name, before), before), name
            continue
        if name.endswith("key.bias"):
            continue  # softmax cancels it: its gradient is rounding noise, which AdamW scales to full steps
        moved, error = (parameters[name] - before).norm(), (actual[name] - parameters[name]).norm()
        assert moved > 0, name
        assert error < share * moved + 1e-7 * before.norm(), f"{name}: {error:.1e} off after moving {moved:.1e}"


def union_batch(store: token_store.TokenStore, indices: np.ndarray, module: Any) -> torch.Tensor:
    """Mean loss over `indices`, with plain transformers calls."""
    batch = store.batch(indices)
    logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return cross_entropy(logits, batch.labels)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_one_site_equals_plain_fine_tuning_with_an_optimiser_restart_each_round(
    alone: Callable[..., Any], optimiser: str
) -> None:
    # A small rate: AdamW takes full steps along gradients of mostly rounding noise, which varies between processors.
    rate = {"adamw": 0.001, "sgd": 0.01}[optimiser]
    config = Config(
        site_ids=(-1,), num_rounds=3, num_local_epochs=2, optimiser=optimiser, learning_rate=rate, weight_decay=0.1,
        batch_size=7, seed=11,
    )  # fmt: skip
    module = builders.bert(dropout=0.2)
    start, plain = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, [np.arange(40)])
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)

    plain.train()
    for round_ in (1, 2, 3):
        decayed = [p for p in plain.parameters() if p.ndim >= 2]
        spared = [p for p in plain.parameters() if p.ndim < 2]
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimiser]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=rate)
        torch.manual_seed(seeding.torch_seed(11, "dropout", round_, 0))
        for epoch in (0, 1):
            for indices in token_store.training_batches(resident.train, np.arange(40), 7, True, 11, round_, 0, epoch):
                optimizer.zero_grad()
                union_batch(resident.train, indices, plain).backward()
                optimizer.step()
    assert_same_movement(by_name(resident, state.params), plain, start)


@pytest.mark.parametrize("hosts", ["one worker", "three workers"])
def test_one_full_batch_sgd_step_per_site_equals_one_step_on_the_union(
    hosts: str, alone: Callable[..., Any], run_distributed: Callable[..., Any], tmp_path: Path
) -> None:
    config = Config(site_ids=(-1,) * 3, num_rounds=1, optimiser="sgd", learning_rate=0.5, **WHOLE_SHARD)
    module = builders.bert(dropout=0.0)
    start, plain = copy.deepcopy(module), copy.deepcopy(module)
    if hosts == "one worker":
        worker_sites, collectives, state = alone(config, module, SHARDS)
        resident = worker_sites.resident
        train_federated(config, worker_sites, collectives, state)
        actual = by_name(resident, state.params)
    else:
        builders.resident(tmp_path, config, copy.deepcopy(module))  # writes the token stores
        arrays = run_distributed(federated_parameters, 3, config)[0]
        actual = {name: torch.from_numpy(array) for name, array in arrays.items()}

    # Σ n_k/n × ∇ mean loss of site k = ∇ mean loss of the union.
    store = token_store.TokenStore(tmp_path / "train", 0)
    plain.train()
    union_batch(store, np.concatenate(SHARDS), plain).backward()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter -= 0.5 * parameter.grad
    assert_same_movement(actual, plain, start)


def federated_parameters(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config
) -> dict[str, np.ndarray]:
    """In a worker process: one site per worker; the server's parameters after all rounds, by name."""
    module = builders.bert(dropout=0.0)
    worker = builders.worker(folder, config, module, SHARDS, rank, num_workers, memory)
    train_federated(config, *worker)
    worker[1].close()
    return {name: tensor.numpy() for name, tensor in by_name(worker[0].resident, worker[2].params).items()}


@pytest.mark.parametrize("exact", [True, False])
def test_server_sgd_with_rate_1_is_the_weighted_mean_of_the_sites_parameters(
    alone: Callable[..., Any], exact: bool
) -> None:
    config = Config(site_ids=(-1,) * 3, num_rounds=1, learning_rate=0.02, batch_size=4, exact_sum=exact)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    resident = worker_sites.resident
    start = state.params.clone()
    expected = torch.zeros_like(start, dtype=torch.float64)
    for site in worker_sites.participants(1):
        site.train(start, round_=1)
        after = start - resident.model.flat  # delta = before − after, so that after = before − delta
        expected += after.double() * {0: 5, 1: 9, 2: 26}[site.number] / 40
    train_federated(config, worker_sites, collectives, state)
    torch.testing.assert_close(state.params.double(), expected, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(state.params, start, atol=1e-3)  # the sites have moved


def test_the_same_seed_gives_bitwise_equal_results_and_another_does_not(tmp_path: Path) -> None:
    def final(seed: int) -> str:
        config = Config(site_ids=(-1,) * 3, num_rounds=2, learning_rate=0.02, batch_size=4, seed=seed)
        folder = tmp_path / f"run {seed}"
        folder.mkdir(exist_ok=True)
        worker = builders.worker(folder, config, builders.bert(), SHARDS)
        torch.seed()  # the state of torch's global generator must not matter
        train_federated(config, *worker)
        worker[1].close()
        return digest(worker[2].params)

    assert final(1) == final(1)
    assert final(1) != final(2)
