"""q-FFL against algorithm 2 of the paper, by a plain loop on unequal sites."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort
from scaling_fl.federated.aggregation import qffl
from scaling_fl.federated.local_batches import local_batches
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import ADAPTERS, SHARDS, by_name, loss, model, train_federated, trained

KEYS = {
    "num_sites": 3, "num_rounds": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.02, "seed": 4,
}  # fmt: skip


def plain_loop(config: Config, resident: Any, w: Any) -> list[list[float]]:
    """Train `w` in place by algorithm 2, with p_k as weights; return the sites' losses of each round."""
    q, L = config.fairness_q, 1 / config.learning_rate
    seen = []
    for round_ in range(1, config.num_rounds + 1):
        shares = cohort.sample(config, [len(shard) for shard in SHARDS], round_)
        numerator, denominator = [torch.zeros_like(p) for p in trained(w)], 0.0
        losses = []
        for site, share in shares.items():
            with torch.no_grad():
                F = float(loss(resident, w.eval(), SHARDS[site]))
            losses.append(F)
            local = copy.deepcopy(w).train()
            optimiser = torch.optim.SGD(trained(local), lr=config.learning_rate)
            for indices in local_batches(config, resident.train, SHARDS[site], round_, site):
                optimiser.zero_grad()
                loss(resident, local, indices).backward()
                optimiser.step()
            moves = [(L * (a - b)).detach() for a, b in zip(trained(w), trained(local), strict=True)]  # Δw_k
            norm = float(sum(move.square().sum() for move in moves))
            for at, move in enumerate(moves):
                numerator[at] += share * F**q * move
            denominator += share * (q * F ** (q - 1) * norm + L * F**q)
        with torch.no_grad():
            for p, update in zip(trained(w), numerator, strict=True):
                p.sub_(update / denominator)
        seen.append(losses)
    return seen


@pytest.mark.parametrize(
    "more",
    [
        {"fairness_q": 5.0},
        {"fairness_q": 0.5, "weighting": "uniform"},
        {"fairness_q": 1.0, "sites_per_round": 2},
        {"fairness_q": 1.0} | ADAPTERS,
    ],
)
def test_it_is_algorithm_2_of_li_et_al_2020(alone: Callable[..., Any], more: dict[str, Any]) -> None:
    config = Config.from_mapping(KEYS | more)
    module = model(config)
    start, w = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)
    losses = plain_loop(config, resident, w)
    assert max(max(of_round) / min(of_round) for of_round in losses) > 1.03, "equal losses would hide wrong weights"
    assert_same_movement(by_name(resident, state.params), w, start)


def test_a_site_that_fits_perfectly_counts_nothing_and_divides_by_nothing(alone: Callable[..., Any]) -> None:
    """q below 1: F^(q−1) is infinite at F = 0."""
    config = Config.from_mapping(KEYS | {"fairness_q": 0.5, "site_ids": [-1]})
    label = 1
    _, labels = builders.texts_and_labels(40, 5)  # of the store that `builders.resident` writes
    perfect = [np.flatnonzero(labels == label)[:4], *SHARDS[1:]]
    worker_sites, collectives, state = alone(config, builders.bert(), perfect)
    assert set(worker_sites.resident.train.labels[perfect[0]]) == {label}
    layout = worker_sites.resident.model.layout
    layout.views(state.params)["classifier.weight"].zero_()
    bias = layout.views(state.params)["classifier.bias"]
    bias.zero_()
    bias[label] = 1e4  # float32's softmax gives 1 to this label, and the loss is 0
    combination = qffl.begin(worker_sites, collectives, state, 1)
    assert combination.weights[0] < 1e-6
    for site in range(3):
        combination.add(site, torch.ones(len(state.row)))
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    assert found.isfinite().all()


def test_only_trained_parameters_have_a_part_in_the_length_of_the_step(alone: Callable[..., Any]) -> None:
    """‖Δw_k‖² of the paper's w, not of frozen parameters or float buffers, which are averaged."""
    module = builders.bert()
    module.bert.embeddings.requires_grad_(False)
    worker_sites, collectives, state = alone(Config.from_mapping(KEYS | {"fairness_q": 1.0}), module, SHARDS)
    combination: Any = qffl.begin(worker_sites, collectives, state, 1)
    combination.add(0, torch.full((len(state.row),), 0.5))
    assert 0 < state.trained < len(state.params)
    assert combination.squares == {0: pytest.approx(state.trained / 4)}
