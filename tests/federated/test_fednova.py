"""FedNova against the paper's update, by a plain loop on unequal sites with unequal epochs."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import local_work
from scaling_fl.federated.algorithms import fednova
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.server_state import ServerState
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import ADAPTERS, SHARDS, by_name, loss, model, train_federated, trained

SIZES = [len(shard) for shard in SHARDS]


def test_weights_by_hand() -> None:
    """p = (¼, ¾), steps (2, 6): τ_eff = 5, and both deltas count τ_eff p / steps = 5/8."""
    by_site, scale = fednova.weights({3: 0.25, 8: 0.75}, {3: 2, 8: 6})
    assert sum(by_site.values()) == 1
    assert {site: scale * weight for site, weight in by_site.items()} == {3: 5 / 8, 8: 5 / 8}


def test_equal_steps_are_fedavg() -> None:
    by_site, scale = fednova.weights({0: 0.25, 1: 0.75}, {0: 7, 1: 7})
    assert by_site == pytest.approx({0: 0.25, 1: 0.75})
    assert scale == pytest.approx(1)


def test_effective_steps_by_hand() -> None:
    plain = Config(learning_rate=0.1, num_rounds=2)
    assert fednova.effective_steps(plain, 1, 5) == pytest.approx(5)
    rising = Config(learning_rate=0.1, num_rounds=2, warmup=1.0)
    assert fednova.effective_steps(rising, 1, 2) == pytest.approx(1 / 4 + 3 / 4)
    undamped = Config(learning_rate=0.1, num_rounds=2, lr_schedule="linear")
    assert fednova.effective_steps(undamped, 2, 2) == pytest.approx((1 - 1.25 / 2) + (1 - 1.75 / 2))
    damped = Config(learning_rate=0.1, proximal_mu=2.0)
    assert fednova.effective_steps(damped, 1, 3) == pytest.approx(1 + 0.8 + 0.8**2)
    falling = Config(learning_rate=0.1, num_rounds=2, lr_schedule="linear", proximal_mu=2.0)
    first, second = 1 - 1.25 / 2, 1 - 1.75 / 2  # shares of the rate at the middle of the two steps of round 2
    assert fednova.effective_steps(falling, 2, 2) == pytest.approx(first * (1 - 0.1 * second * 2.0) + second)


def test_only_trained_parameters_are_scaled() -> None:
    state = ServerState(torch.zeros(9), trained=4, round=0)
    for chunk, expected in (
        (slice(0, 9), [3.0] * 4 + [1.0] * 5),
        (slice(3, 9), [3.0] + [1.0] * 5),
        (slice(4, 9), [1.0] * 5),
        (slice(5, 9), [1.0] * 4),
    ):
        assert state.scaled(torch.ones(9)[chunk], 3.0, chunk).tolist() == expected


@pytest.mark.parametrize(
    ("mu", "schedule", "more"),
    [(0.0, "constant", {}), (8.0, "constant", {}), (8.0, "linear", {}), (8.0, "linear", ADAPTERS)],
)
def test_it_is_algorithm_1_of_wang_et_al_2020(
    alone: Callable[..., Any], mu: float, schedule: str, more: dict[str, Any]
) -> None:
    """x ← x − τ_eff Σ p_i delta_i / ‖a_i‖₁ over three rounds, each site with one to three epochs of its own number."""
    rate = 0.02
    config = Config(
        num_sites=3, num_rounds=3, local_epochs_range=(1, 3), batch_size=4, optimiser="sgd", learning_rate=rate, seed=4,
        fednova=True, proximal_mu=mu, lr_schedule=schedule, **more,
    )  # fmt: skip
    module = model(config)
    server, start = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)

    epochs = [[local_work.of_site(config, size, r, site).epochs for site, size in enumerate(SIZES)] for r in (1, 2, 3)]
    assert len({tuple(of_round) for of_round in epochs}) > 1
    for round_ in (1, 2, 3):
        per_step = [torch.zeros_like(p) for p in trained(server)]
        effective = 0.0
        for site, shard in enumerate(SHARDS):
            local = copy.deepcopy(server).train()
            optimiser = torch.optim.SGD(trained(local), lr=rate)
            batches = list(local_batches(config, resident.train, shard, round_, site))
            rates = [rate] * len(batches)
            if schedule == "linear":  # from the full rate at the start of round 1 to 0 at the end of round 3
                rates = [rate * (1 - (round_ - 1 + (step + 0.5) / len(batches)) / 3) for step in range(len(batches))]
            for indices, of_step in zip(batches, rates, strict=True):
                optimiser.param_groups[0]["lr"] = of_step
                optimiser.zero_grad()
                loss(resident, local, indices, mu, server).backward()
                optimiser.step()
            norm = sum(
                of_step / rate * math.prod(1 - later * mu for later in rates[step + 1 :])
                for step, of_step in enumerate(rates)
            )
            share = SIZES[site] / sum(SIZES)
            effective += share * norm
            for total, before, after in zip(per_step, trained(server), trained(local), strict=True):
                total += share * (before - after).detach() / norm
        with torch.no_grad():
            for parameter, total in zip(trained(server), per_step, strict=True):
                parameter.sub_(effective * total)
    assert_same_movement(by_name(resident, state.params), server, start)
