"""Local optimisers: each learns, and what a site keeps of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.config.sections.training import OPTIMISERS
from scaling_fl.federated.local_optimiser import local_optimiser, site_state_template
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.state_file import write_state
from tests import builders
from tests.federated.training import SHARD


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_learns(tmp_path: Path, optimiser: str) -> None:
    rate = {"sgd": 0.1, "adagrad": 0.02}.get(optimiser, 0.001)  # ratios of 0.02 to 0.22 over five seeds
    config = Config(batch_size=5, learning_rate=rate, optimiser=optimiser, num_local_epochs=15)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    params = resident.model.flat.clone()
    site = Site(0, np.arange(40), resident)
    delta, first = site.train(params, 1)
    _, second = site.train(params - delta, 2)
    assert second.loss < 0.5 * first.loss


def by_textbook(optimiser: str, gradients: list[torch.Tensor], rate: float) -> torch.Tensor:
    """Where the parameters are after a step along each gradient from 0, by the formulas of the papers and torch's defaults."""
    p, m, v = (torch.zeros_like(gradients[0]) for _ in range(3))
    for number, g in enumerate(gradients, 1):
        match optimiser:
            case "sgd":
                step = g
            case "adam" | "adamw":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                step = m / (1 - 0.9**number) / ((v / (1 - 0.999**number)).sqrt() + 1e-8)
            case "adagrad":
                v = v + g**2
                step = g / (v.sqrt() + 1e-10)
            case "rmsprop":
                v = 0.99 * v + 0.01 * g**2
                step = g / (v.sqrt() + 1e-8)
        p = p - rate * step
    return p


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_is_that_of_the_textbook(resident: Resident, name: str) -> None:
    config = dataclasses.replace(resident.config, optimiser=name, learning_rate=0.03)
    model = resident.model
    model.flat.zero_()
    optimiser = local_optimiser(config, model)
    torch.manual_seed(5)
    gradients = [torch.randn(model.layout.trained, dtype=torch.float64) for _ in range(4)]
    for gradient in gradients:
        model.gradient.copy_(gradient)
        optimiser.step()
    expected = by_textbook(name, gradients, 0.03).float()
    torch.testing.assert_close(model.flat[: model.layout.trained], expected, rtol=1e-3, atol=1e-5)


def test_weight_decay_excludes_biases_and_norms(resident: Resident) -> None:
    config = dataclasses.replace(resident.config, weight_decay=0.5, optimiser="sgd", learning_rate=0.1)
    optimiser = local_optimiser(config, resident.model)
    before = {name: p.clone() for name, p in resident.model.module.named_parameters()}
    resident.model.gradient.zero_()
    optimiser.step()
    for name, parameter in resident.model.module.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim > 1 else 1.0
        torch.testing.assert_close(parameter.data, before[name].data * factor, msg=name)


@pytest.mark.parametrize("optimiser", ["adamw", "adam", "adagrad", "rmsprop", "sgd"])
def test_a_kept_optimiser_over_two_rounds_equals_one_over_two_epochs(tmp_path: Path, optimiser: str) -> None:
    """One batch holds the whole shard, so two rounds and two epochs differ in nothing else."""
    results = []
    for rounds, epochs in ((2, 1), (1, 2)):
        config = Config(
            batch_size=len(SHARD), learning_rate=0.01, optimiser=optimiser, keep_optimiser=rounds == 2,
            num_local_epochs=epochs,
        )  # fmt: skip
        resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
        params, store = resident.model.flat.clone(), None
        start = {name: view.clone() for name, view in resident.model.layout.views(params).items()}
        if rounds == 2:
            write_state(tmp_path / "start", {}, {})
            store = SiteStateStore(tmp_path / "kept", tmp_path / "start")
        site = Site(2, SHARD, dataclasses.replace(resident, store=store))
        for round_ in range(1, rounds + 1):
            params = params - site.train(params, round_)[0]
        results.append(
            {name: view for name, view in resident.model.layout.views(params).items() if "key.bias" not in name}
        )
        expected = site_state_template(config, resident.model.layout)
        if rounds == 2:
            assert store is not None
            assert {name: tuple(value.shape) for name, value in store.load(2).items()} == {
                name: array.shape for name, array in expected.items()
            }
    for name, view in results[
        0
    ].items():  # a bound on single values would hold by luck: see tests/federated/test_numerics.py
        moved, error = (results[1][name] - start[name]).norm(), (view - results[1][name]).norm()
        assert error < 1e-4 * moved + 1e-7 * start[name].norm(), f"{name}: {error:.1e} off after moving {moved:.1e}"


@pytest.mark.parametrize("baseline", [None, "local_only"])
@pytest.mark.parametrize("optimiser", [None, *OPTIMISERS])
def test_what_a_site_keeps_has_the_names_and_shapes_of_the_template(
    tmp_path: Path, baseline: str | None, optimiser: str | None
) -> None:
    config = Config(
        batch_size=len(SHARD), optimiser=optimiser or "adamw", keep_optimiser=optimiser is not None, baseline=baseline
    )
    if not config.keeps_site_state:
        return
    write_state(tmp_path / "start", {}, {})
    store = SiteStateStore(tmp_path / "kept", tmp_path / "start")
    resident = dataclasses.replace(builders.resident(tmp_path, config, builders.bert()), store=store)
    Site(2, SHARD, resident).train(resident.model.flat.clone(), 1)
    expected = site_state_template(config, resident.model.layout)
    assert ("params" in expected) == (baseline == "local_only")
    found = {name: tuple(value.shape) for name, value in store.load(2).items()}
    assert found == {name: array.shape for name, array in expected.items()}
