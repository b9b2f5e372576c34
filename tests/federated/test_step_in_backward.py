"""Steps within the backward pass: they give what steps over the whole flat buffer give, where nothing needs the whole."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.config.sections.training import OPTIMISERS
from scaling_fl.federated import step_in_backward
from scaling_fl.federated.local_optimiser import local_optimiser
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from tests import builders
from tests.models import architectures

USUAL = ("albert", "bart", "distilbert", "gpt2", "lilt", "t5")  # LiLT has matrices that don't fill a vector


def trained(folder: Path, config: Config, module: Any) -> tuple[torch.Tensor, float, torch.Tensor]:
    """The delta of a site, its loss, and the part of the flat gradient that is the matrices'."""
    resident = builders.resident(folder, config, module)
    delta, metrics = Site(2, np.arange(20), resident).train(resident.model.flat.clone(), 3)
    return delta.clone(), metrics.loss, resident.model.gradient[: resident.model.layout.decayed]


def assert_equal(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Config, kind: str) -> None:
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 10**9)
    expected, expected_loss, gradient = trained(folder, config, architectures.build(kind))
    assert gradient.any()
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 0)
    found, loss, gradient = trained(folder, config, architectures.build(kind))
    assert not gradient.any(), "nothing writes the matrices' gradient"
    assert torch.equal(found, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("kind", architectures.cases(*USUAL))
def test_an_architecture_takes_the_steps_of_the_flat_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Also where parameters are shared, or used in several layers: none changes before all have used it."""
    config = Config(batch_size=13, weight_decay=0.1, learning_rate=1e-2, num_local_epochs=2)
    assert_equal(tmp_path, monkeypatch, config, kind)


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("rank", [0, 1, -1])
def test_large_matrices_alone_take_their_steps_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rank: int
) -> None:
    """The others share steps with their neighbours in the flat buffer."""
    config = Config(batch_size=13, weight_decay=0.1, learning_rate=1e-2, num_local_epochs=2, optimiser="adamw")
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 10**9)
    expected, loss, _ = trained(tmp_path, config, architectures.build(kind))
    module = architectures.build(kind)
    sizes = sorted({p.numel() for p in module.parameters() if p.ndim >= 2})
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", sizes[rank])
    found, same_loss, _ = trained(tmp_path, config, module)
    assert torch.equal(found, expected)
    assert same_loss == loss


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_an_optimiser_takes_the_steps_of_the_flat_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimiser: str
) -> None:
    config = Config(
        batch_size=3, optimiser=optimiser, weight_decay=0.1, learning_rate=1e-2, num_rounds=6, lr_schedule="cosine"
    )
    assert_equal(tmp_path, monkeypatch, config, "bert")


def test_matrices_that_the_backward_pass_does_not_reach_take_a_step_along_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 0)
    module = builders.bert()
    module.unused = torch.nn.Linear(16, 16)
    before = module.unused.weight.detach().clone()
    config = Config(batch_size=20, optimiser="sgd", weight_decay=0.5, learning_rate=0.1)
    trained(tmp_path, config, module)
    delta = module.unused.weight.detach()  # the module's memory holds it now
    torch.testing.assert_close(delta, before * 0.05)


@pytest.mark.parametrize(
    "keys",
    [
        {"max_grad_norm": 1.0}, {"gradient_accumulation_steps": 2}, {"gradient_checkpointing": True},
        {"keep_optimiser": True}, {"precision": "fp16"},
    ],
)  # fmt: skip
def test_what_needs_the_whole_gradient_gets_it(
    resident: Resident, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any]
) -> None:
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 0)
    config = Config(**keys)
    changed = dataclasses.replace(resident, config=config)
    assert not step_in_backward.take_over(changed, local_optimiser(config, resident.model), [], [np.arange(3)])


def test_terms_of_methods_and_small_matrices_and_gpus_get_the_whole_gradient(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = resident.model.layout
    sizes = {entry.name: entry.shape.numel() for entry in layout.entries if entry.start < layout.decayed}

    def taken(terms: Any = ()) -> set[str]:
        optimiser = local_optimiser(resident.config, resident.model)
        return set(step_in_backward.take_over(resident, optimiser, terms, [np.arange(3)]))

    assert not taken()
    for size in sorted(sizes.values()):
        monkeypatch.setattr(step_in_backward, "MIN_SIZE", size)
        assert taken() == {name for name in sizes if sizes[name] >= size}
    assert not taken([object()])
    monkeypatch.setattr(resident.model, "collects", False)
    assert not taken()


def test_a_second_gradient_of_a_step_is_not_taken_for_another_step(resident: Resident) -> None:
    model = resident.model
    taken = list[torch.Tensor]()
    with model.new_gradient({"classifier.weight": taken.append}):
        model.module.classifier.weight.sum().backward()
        with pytest.raises(AssertionError, match="twice"):
            model.module.classifier.weight.sum().backward()
    assert len(taken) == 1
    model.module.classifier.weight.sum().backward()  # outside
    assert len(taken) == 1
    assert (model.layout.views(model.gradient)["classifier.weight"] == 1).all()
