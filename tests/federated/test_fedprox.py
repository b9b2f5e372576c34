"""FedProx against a plain loop whose loss has the proximal term, on unequal sites."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import algorithms
from scaling_fl.federated.algorithms import fedprox
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.site import Site
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import SHARD, SHARDS, by_name, loss, train_federated

SIZES = [len(shard) for shard in SHARDS]


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_it_is_algorithm_2_of_li_et_al_2020(alone: Callable[..., Any], max_grad_norm: float | None) -> None:
    """Three rounds of two epochs of SGD on h_k = F_k + μ/2 ‖w − w^t‖²; a clipped gradient is that of h_k."""
    mu, rate = 8.0, 0.02
    config = Config(
        num_sites=3, num_rounds=3, num_local_epochs=2, batch_size=4, optimiser="sgd", learning_rate=rate, seed=3,
        proximal_mu=mu, max_grad_norm=max_grad_norm,
    )  # fmt: skip
    module = builders.bert(dropout=0.0)
    server = copy.deepcopy(module)
    start = copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)

    for round_ in (1, 2, 3):
        means = [torch.zeros_like(p) for p in server.parameters()]
        for site, shard in enumerate(SHARDS):
            local = copy.deepcopy(server).train()
            optimiser = torch.optim.SGD(local.parameters(), lr=rate)
            for indices in local_batches(config, resident.train, shard, round_, site):
                optimiser.zero_grad()
                loss(resident, local, indices, mu, server).backward()
                if max_grad_norm is not None:
                    torch.nn.utils.clip_grad_norm_(local.parameters(), max_grad_norm)
                optimiser.step()
            for mean, own in zip(means, local.parameters(), strict=True):
                mean += own.detach() * SIZES[site] / sum(SIZES)
        with torch.no_grad():
            for parameter, mean in zip(server.parameters(), means, strict=True):
                parameter.copy_(mean)
    assert_same_movement(by_name(resident, state.params), server, start)


def test_the_term_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient, flat = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0, 7.0])  # the last value isn't trained
    fedprox.Proximal(0.5, torch.tensor([1.0, 6.0, 0.0])).add_gradient(gradient, flat)
    assert gradient.tolist() == [1 + 0.5 * 2, 2 - 0.5 * 1]
    monkeypatch.setattr(fedprox, "CHUNK", {"cpu": 2})
    gradient = torch.zeros(5)
    fedprox.Proximal(0.5, torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])).add_gradient(gradient, torch.full((6,), 2.0))
    assert gradient.tolist() == [0.5, 0.0, -1.0, -3.0, -7.0], "each chunk once"


@pytest.mark.parametrize("mu", [0.0, 1e-3, 0.5, 3.0])
def test_every_mu_above_0_pulls(tmp_path: Path, mu: float) -> None:
    resident = builders.resident(tmp_path, Config(proximal_mu=mu), builders.bert())
    params, kept = resident.model.flat.clone(), dict[str, torch.Tensor]()
    terms = algorithms.local_terms(algorithms.Start(Site(0, SHARD, resident), 1, params, params[:0], kept))
    assert len(terms) == (mu > 0)
    for term in terms:
        gradient = torch.zeros(resident.model.layout.trained)
        term.add_gradient(gradient, params + 2)
        torch.testing.assert_close(gradient, torch.full_like(gradient, 2 * mu), rtol=1e-3, atol=0)


def test_the_term_is_added_to_unscaled_gradients(tmp_path: Path) -> None:
    """fp16 scales the loss by 4,096: two steps come out as in fp32, and otherwise than without the term."""

    def delta(precision: str, mu: float) -> torch.Tensor:
        keys: dict[str, Any] = {"batch_size": 4, "num_local_steps": 2, "learning_rate": 0.1, "optimiser": "sgd"}
        config = Config(**keys, precision=precision, proximal_mu=mu)
        resident = builders.resident(tmp_path / f"{precision} {mu}", config, builders.bert(dropout=0.0))
        return Site(0, SHARD, resident).train(resident.model.flat.clone(), 1)[0].clone()

    expected = delta("fp32", 8.0)
    assert (delta("fp16", 8.0) - expected).norm() < 0.02 * expected.norm()
    assert (delta("fp16", 0.0) - expected).norm() > 0.2 * expected.norm()
