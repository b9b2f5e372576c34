"""SCAFFOLD against algorithm 1 of the paper, by a plain loop on unequal sites of which two take part in each round."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import algorithms, cohort
from scaling_fl.federated.full_gradient import full_gradient
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.local_optimiser import site_state_template
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.server_state import fill_state, initial_extra, parameters, state_arrays
from scaling_fl.models.flat_parameters import FlatModel, Layout
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import ADAPTERS, SHARDS, by_name, loss, model, train_federated, trained, trained_names

Tensors = list[torch.Tensor]


def plain_loop(config: Config, resident: Any, x: Any) -> Tensors:
    """Train `x` in place by algorithm 1; return the server's control variate."""
    c = [torch.zeros_like(p) for p in trained(x)]
    own = [[torch.zeros_like(p) for p in trained(x)] for _ in SHARDS]
    for round_ in range(1, config.num_rounds + 1):
        chosen = list(cohort.sample(config, [len(shard) for shard in SHARDS], round_))
        moves, changes = ([torch.zeros_like(p) for p in trained(x)] for _ in range(2))
        for site in chosen:
            y = copy.deepcopy(x).train()
            batches = list(local_batches(config, resident.train, SHARDS[site], round_, site))
            rates = [learning_rate(config, round_, (step + 0.5) / len(batches)) for step in range(len(batches))]
            for rate, indices in zip(rates, batches, strict=True):
                gradients = torch.autograd.grad(loss(resident, y, indices), list(trained(y)))
                with torch.no_grad():
                    for p, g, c_i, c_all in zip(trained(y), gradients, own[site], c, strict=True):
                        p.sub_(rate * (g - c_i + c_all))
            whole = torch.autograd.grad(loss(resident, x, SHARDS[site]), list(trained(x)))
            for at, (before, after) in enumerate(zip(trained(x), trained(y), strict=True)):
                move = (after - before).detach()
                new = whole[at] if config.scaffold == "I" else own[site][at] - c[at] - move / sum(rates)
                moves[at] += move / len(chosen)
                changes[at] += (new - own[site][at]) / len(SHARDS)
                own[site][at] = new.clone()
        with torch.no_grad():
            for at, p in enumerate(trained(x)):
                p.add_(moves[at])
                c[at] += changes[at]
    return c


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize(
    "more", [{"sites_per_round": 2}, {"lr_schedule": "linear", "local_epochs_range": (1, 3)}, ADAPTERS]
)
def test_it_is_algorithm_1_of_karimireddy_et_al_2020(
    alone: Callable[..., Any], option: str, more: dict[str, Any]
) -> None:
    config = Config.from_mapping(
        {
            "num_sites": 3, "num_rounds": 4, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.02, "seed": 4,
            "weighting": "uniform", "scaffold": option,
        } | more
    )  # fmt: skip
    module = model(config)
    start, x = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)
    c = plain_loop(config, resident, x)
    assert_same_movement(by_name(resident, state.params), x, start)
    found = resident.model.layout.views(state.extra)
    for name, expected in zip(trained_names(x), c, strict=True):
        assert found[name].shape == expected.shape
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-5, msg=name)
    assert max(float(value.abs().max()) for value in c) > 1e-2


def test_the_controls_are_part_of_the_state_by_tensor_name() -> None:
    config = Config(scaffold="II")
    module = builders.bert()
    layout = Layout(module)
    size = layout.size + algorithms.extra_size(config, layout)
    model = FlatModel(module, torch.zeros(size))
    block = torch.randn(2, size)
    tensors = state_arrays(model, block)
    trained = {name for name, _ in module.named_parameters()}
    assert {name for name in tensors if name.startswith("server_extra.")} == {f"server_extra.{n}" for n in trained}
    assert parameters(tensors).keys() == model.arrays(block[0][: layout.size]).keys()
    received = torch.zeros_like(block)
    fill_state(model, received, tensors)
    for part in (slice(0, layout.size), slice(layout.size, None)):
        for name, view in layout.views(received[0][part]).items():
            assert torch.equal(view, layout.views(block[0][part])[name])
    fresh = initial_extra(layout, algorithms.extra_size(config, layout))
    assert fresh.keys() == {f"server_extra.{name}" for name in trained}
    assert not any(array.any() for array in fresh.values())
    assert initial_extra(layout, algorithms.extra_size(Config(), layout)) == {}
    assert {name: array.shape for name, array in site_state_template(config, layout).items()} == {
        "scaffold_control": (layout.trained,)
    }


def test_the_gradient_of_option_1_is_that_of_the_whole_shard_without_dropout(tmp_path: Path) -> None:
    """Against one backward pass over all rows in evaluation mode; the model is in training mode before."""
    rows = np.array([3, 1, 17, 30, 8, 9, 22])
    resident = builders.resident(tmp_path, Config(batch_size=3), builders.bert(dropout=0.5))
    plain = copy.deepcopy(resident.model.module).eval()
    loss(resident, plain, rows).backward()
    resident.model.module.train()
    found = resident.model.layout.views(full_gradient(resident, rows))
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_gradient_of_option_1_survives_fp16(tmp_path: Path) -> None:
    found = []
    for precision in ("fp32", "fp16"):
        config = Config(batch_size=7, precision=precision)
        resident = builders.resident(tmp_path / precision, config, builders.bert())
        found.append(full_gradient(resident, np.arange(40)).clone())
    exact, half = found
    assert (half - exact).norm() < 0.02 * exact.norm()
