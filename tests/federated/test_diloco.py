"""DiLoCo: many local AdamW steps, and an outer step with Nesterov's momentum on the plain mean."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import rounds, server
from scaling_fl.federated.local_batches import local_batches
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import SHARDS, by_name, loss


def test_it_is_algorithm_1_of_douillard_et_al_2023(alone: Callable[..., Any]) -> None:
    """Inner AdamW, H = 5 steps a round; outer SGD with Nesterov's momentum. Unequal sites."""
    keys: dict[str, Any] = {
        "num_rounds": 3, "num_local_steps": 5, "batch_size": 4, "optimiser": "adamw", "learning_rate": 1e-3, "seed": 3,
        "weighting": "uniform", "server_learning_rate": 0.7, "server_momentum": 0.9, "server_nesterov": True,
    }  # fmt: skip
    config = Config.from_mapping(keys | {"num_sites": 3})
    module = builders.bert(dropout=0.0)
    outer = copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    optimiser = server.optimiser(config)
    state.moments = torch.zeros(1, len(state.params))
    rounds.run(config, worker_sites, collectives, state, optimiser, lambda *_: None)

    outer_optimiser = torch.optim.SGD(outer.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    start = copy.deepcopy(outer)
    for round_ in (1, 2, 3):
        deltas = [torch.zeros_like(p) for p in outer.parameters()]
        for site, shard in enumerate(SHARDS):
            inner = copy.deepcopy(outer).train()
            inner_optimiser = torch.optim.AdamW(inner.parameters(), lr=1e-3, weight_decay=0.0)
            for indices in local_batches(config, resident.train, shard, round_, site):
                inner_optimiser.zero_grad()
                loss(resident, inner, indices).backward()
                inner_optimiser.step()
            for delta, before, after in zip(deltas, outer.parameters(), inner.parameters(), strict=True):
                delta += (before - after).detach() / len(SHARDS)
        for parameter, delta in zip(outer.parameters(), deltas, strict=True):
            parameter.grad = delta
        outer_optimiser.step()
    # AdamW divides a gradient by its own size: on one processor of three, 1.4 × 10⁻⁴ of the distance.
    assert_same_movement(by_name(resident, state.params), outer, start, share=1e-3)
