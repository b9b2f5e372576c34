"""FedDyn against algorithm 1 of the paper, by a plain loop on unequal sites of which two take part in each round."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort, rounds, server
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.local_optimiser import site_state_template
from scaling_fl.models.flat_parameters import Layout
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import ADAPTERS, SHARDS, by_name, loss, model, trained, trained_names


def plain_loop(config: Config, resident: Any, theta: Any) -> list[torch.Tensor]:
    """Train `theta` in place as the paper writes it; return the server's h."""
    alpha = config.feddyn_alpha
    h = [torch.zeros_like(p) for p in trained(theta)]
    own = [[torch.zeros_like(p) for p in trained(theta)] for _ in SHARDS]
    for round_ in range(1, config.num_rounds + 1):
        chosen = list(cohort.sample(config, [len(shard) for shard in SHARDS], round_))
        mean = [torch.zeros_like(p) for p in trained(theta)]
        drift = [torch.zeros_like(p) for p in trained(theta)]
        for site in chosen:
            local = copy.deepcopy(theta).train()
            optimiser = torch.optim.SGD(trained(local), lr=config.learning_rate)
            for indices in local_batches(config, resident.train, SHARDS[site], round_, site):
                objective = loss(resident, local, indices, alpha, theta)
                for p, g in zip(trained(local), own[site], strict=True):
                    objective = objective - (g * p).sum()
                optimiser.zero_grad()
                objective.backward()
                optimiser.step()
            for at, (p, start) in enumerate(zip(trained(local), trained(theta), strict=True)):
                moved = (p - start).detach()
                own[site][at] -= alpha * moved
                drift[at] += moved
                mean[at] += p.detach() / len(chosen)
        with torch.no_grad():
            for at, p in enumerate(trained(theta)):
                h[at] -= alpha * drift[at] / len(SHARDS)
                p.copy_(mean[at] - h[at] / alpha)
    return h


@pytest.mark.parametrize("more", [{"sites_per_round": 2}, {"local_epochs_range": [1, 3]}, ADAPTERS])
def test_it_is_algorithm_1_of_acar_et_al_2021(alone: Callable[..., Any], more: dict[str, Any]) -> None:
    config = Config.from_mapping(
        {
            "num_sites": 3, "num_rounds": 4, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.02, "seed": 4,
            "weighting": "uniform", "feddyn_alpha": 4.0,
        } | more
    )  # fmt: skip
    module = model(config)
    start, theta = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    rounds.run(config, worker_sites, collectives, state, server.optimiser(config), lambda *_: None)
    h = plain_loop(config, resident, theta)
    assert_same_movement(by_name(resident, state.params), theta, start)
    assert state.moments is not None
    found = resident.model.layout.views(state.moments[0])
    for name, expected in zip(trained_names(theta), h, strict=True):
        torch.testing.assert_close(found[name] * 4.0, expected, rtol=1e-3, atol=1e-5, msg=name)
    assert max(float(value.abs().max()) for value in h) > 1e-2


def test_each_site_keeps_one_buffer() -> None:
    layout = Layout(builders.bert())
    kept = {name: array.shape for name, array in site_state_template(Config(feddyn_alpha=0.1), layout).items()}
    assert kept == {"feddyn_dual": (layout.trained,)}
    assert site_state_template(Config(), layout) == {}
