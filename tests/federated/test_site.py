"""A site's local training: its delta, its metrics, its steps, and their precision."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.errors import JobFailed
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.local_training import clip
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.state_file import write_state
from tests import builders
from tests.federated.training import ADAPTERS, SHARD, model


def test_delta_is_the_servers_parameters_minus_the_sites_after_training(resident: Resident) -> None:
    params = resident.model.flat.clone()
    kept = params.clone()
    delta, _ = Site(0, SHARD, resident).train(params, 1)
    assert torch.equal(params, kept)
    # The model's buffer now holds the delta. Training again must give the same one.
    after = params - delta
    assert not torch.allclose(after, params, atol=1e-3)
    delta_again, _ = Site(0, SHARD, resident).train(params, 1)
    torch.testing.assert_close(params - delta_again, after, rtol=0, atol=0)


def test_training_depends_only_on_site_round_and_seed(resident: Resident) -> None:
    params = resident.model.flat.clone()

    def delta(number: int, round_: int, seed: int = 1) -> torch.Tensor:
        own = dataclasses.replace(resident, config=dataclasses.replace(resident.config, seed=seed))
        return Site(number, SHARD, own).train(params, round_)[0].clone()

    first = delta(2, 5)
    for other in (delta(3, 5), delta(2, 6), delta(2, 5, seed=2)):
        assert not torch.equal(other, first)
    torch.rand(7)  # other draws from torch's generator don't matter
    assert torch.equal(delta(2, 5), first)


def test_metrics_cover_the_training_steps(tmp_path: Path) -> None:
    config = Config(batch_size=3, learning_rate=1e-30, optimiser="sgd", num_local_epochs=2)  # the model doesn't move
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    steps: list[int] = []
    resident = dataclasses.replace(resident, on_step=lambda: steps.append(1))
    params = resident.model.flat.clone()
    site = Site(4, SHARD, resident)
    _, metrics = site.train(params, 1)

    resident.model.load(params)
    batch = resident.train.batch(SHARD)
    logits = resident.model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    loss = torch.nn.functional.cross_entropy(logits, batch.labels).item()
    assert (metrics.site, metrics.count) == (4, 14)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert metrics.accuracy == pytest.approx((logits.argmax(-1) == batch.labels).float().mean().item())
    assert len(steps) == 6, "7 examples in batches of 3, twice"


def by_hand(module: Any, rates: Callable[[int], float], store: token_store.TokenStore, **clip: float) -> torch.Tensor:
    """Plain SGD over batches of 7, in the order of site 2 in round 3; returns the flat trained parameters."""
    module.train()
    step = 0
    for epoch in range(2):
        for indices in token_store.training_batches(store, np.arange(40), 7, True, 11, 3, 2, epoch):
            batch = store.batch(indices)
            module.zero_grad()
            logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            torch.nn.functional.cross_entropy(logits, batch.labels).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(module.parameters(), **clip)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= rates(step) * parameter.grad
            step += 1
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize(
    ("keys", "rates", "clip"),
    [
        ({}, lambda step: 0.1, {}),
        ({"max_grad_norm": 0.3}, lambda step: 0.1, {"max_norm": 0.3}),
        ({"gradient_accumulation_steps": 3}, lambda step: 0.1, {}),
        ({"gradient_accumulation_steps": 9}, lambda step: 0.1, {}),
        # Round 3 of 10, with 12 steps; each step uses the rate at its middle.
        ({"lr_schedule": "linear"}, lambda step: 0.1 * (1 - (2 + (step + 0.5) / 12) / 10), {}),
        ({"warmup": 4.0}, lambda step: 0.1 * (2 + (step + 0.5) / 12) / 4, {}),
        ({"gradient_checkpointing": True}, lambda step: 0.1, {}),
    ],
)
def test_local_steps_match_a_plain_training_loop(
    tmp_path: Path, keys: dict[str, Any], rates: Callable[[int], float], clip: dict[str, float]
) -> None:
    config = Config(
        batch_size=7, learning_rate=0.1, optimiser="sgd", num_local_epochs=2, num_rounds=10, seed=11, **keys
    )
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    params = resident.model.flat.clone()
    delta, metrics = Site(2, np.arange(40), resident).train(params, 3)
    after = resident.model.layout.views(params - delta)
    expected = by_hand(builders.bert(dropout=0.0), rates, resident.train, **clip)
    names = [name for name, _ in builders.bert().named_parameters()]
    found = torch.cat([after[name].flatten() for name in names])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    before = torch.cat([resident.model.layout.views(params)[name].flatten() for name in names])
    assert (expected - before).norm() > 0.05, "the steps are large enough to tell the cases apart"
    assert metrics.count == 80


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_lower_precision_applies_to_passes_and_parameters_stay_float32(
    tmp_path: Path, precision: str, dtype: torch.dtype
) -> None:
    config = Config(batch_size=5, learning_rate=0.001, num_local_epochs=15, precision=precision, max_grad_norm=1.0)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    seen: list[torch.dtype] = []
    resident.model.module.classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    params = resident.model.flat.clone()
    delta, first = Site(0, np.arange(40), resident).train(params, 1)
    _, second = Site(0, np.arange(40), resident).train(params - delta, 2)
    assert second.loss < 0.5 * first.loss
    assert set(seen) == {dtype}
    assert {delta.dtype, resident.model.gradient.dtype} == {torch.float32}
    exact = dataclasses.replace(resident, config=dataclasses.replace(config, precision="fp32"))
    resident.model.load(params)
    with torch.inference_mode():
        low, high = (r.logits(r.train.batch(SHARD)) for r in (resident, exact))
    assert not torch.equal(low, high)
    torch.testing.assert_close(low, high, rtol=0.05, atol=0.05)
    seen.clear()
    evaluate(resident, params, 0, 1)
    assert set(seen) == {dtype}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_clipping_bounds_a_step_in_any_precision(tmp_path: Path, precision: str) -> None:
    """A step of SGD along a gradient clipped to norm 0.05 is learning_rate × 0.05 long, whatever the loss is scaled by."""
    config = Config(batch_size=len(SHARD), learning_rate=0.1, optimiser="sgd", precision=precision, max_grad_norm=0.05)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    delta, _ = Site(0, SHARD, resident).train(resident.model.flat.clone(), 1)
    assert delta.norm().item() == pytest.approx(0.1 * 0.05, rel=1e-3)


NO_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no C++ compiler")
INDUCTOR = [pytest.mark.thorough, NO_COMPILER]


@pytest.mark.timeout(3600)  # inductor takes a minute of an idle core
@pytest.mark.parametrize(
    ("backend", "precision", "tolerance"),
    [("aot_eager", "fp32", 1e-5), ("aot_eager", "bf16", 0.02), pytest.param("inductor", "fp32", 1e-5, marks=INDUCTOR)],
)
def test_a_compiled_model_trains_and_evaluates_like_an_eager_one(
    backend: str, precision: str, tolerance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs of `aot_eager` are those that inductor compiles."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    results = []
    for compile_ in (False, True):
        config = Config(batch_size=7, learning_rate=0.1, optimiser="sgd", compile=compile_, precision=precision)
        resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
        params = resident.model.flat.clone()
        delta, _ = Site(2, np.arange(40), resident).train(params, 3)
        after = params - delta
        evaluated = evaluate(resident, after, 0, 1)
        results.append((after, sum(batch.loss_sum for batch in evaluated)))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=tolerance, atol=tolerance / 10)
    assert results[1][1] == pytest.approx(results[0][1], rel=tolerance)
    assert resident.model.module._compiled_call_impl is not None


def test_a_site_on_its_own_that_diverges_is_named(tmp_path: Path) -> None:
    """Nothing is aggregated, so that no sum finds it; the state before stays."""
    config = Config(batch_size=3, learning_rate=1e38, optimiser="sgd", baseline="local_only", num_local_epochs=3)
    write_state(tmp_path / "start", {}, {})
    store = SiteStateStore(tmp_path / "kept", tmp_path / "start")
    resident = dataclasses.replace(builders.resident(tmp_path, config, builders.bert()), store=store)
    with pytest.raises(JobFailed, match="the parameters of site 4 are no longer finite"):
        Site(4, SHARD, resident).train(resident.model.flat.clone(), 1)
    assert store.load(4) == {}


@pytest.mark.parametrize("max_norm", [0.5, 12.9, 13.1, 1000.0])
def test_clipping_is_that_of_pytorch_and_lengthens_no_gradient(max_norm: float) -> None:
    gradient = torch.tensor([3.0, -4.0, 12.0])  # of norm 13
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    clip(gradient, max_norm)
    torch.testing.assert_close(gradient, parameter.grad)
    assert gradient.norm().item() == pytest.approx(min(max_norm, 13.0))


def test_dropout_differs_by_seed_round_and_site_and_by_nothing_else(tmp_path: Path) -> None:
    """On one example, whose order can't differ."""

    def delta(dropout: float, site: int = 1, round_: int = 1, **keys: int) -> torch.Tensor:
        config = Config(batch_size=3, learning_rate=0.02, optimiser="sgd", **keys)
        resident = builders.resident(tmp_path, config, builders.bert(dropout=dropout))
        return Site(site, np.array([5]), resident).train(resident.model.flat.clone(), round_)[0].clone()

    first = delta(0.5)
    assert torch.equal(delta(0.5), first)
    assert torch.equal(delta(0.5, data_seed=3), first)
    for other in ({"site": 2}, {"round_": 2}, {"seed": 3}):
        assert not torch.allclose(delta(0.5, **other), first, atol=1e-5), other
        assert torch.equal(delta(0.0, **other), delta(0.0)), other


def test_checkpointing_computes_layers_twice_and_changes_no_delta(tmp_path: Path) -> None:
    """In one step, of adapters above frozen layers."""
    deltas, calls = [], list[list[int]]()
    for checkpointing in (False, True):
        keys: dict[str, Any] = {"batch_size": len(SHARD), "optimiser": "sgd", "learning_rate": 0.1} | ADAPTERS
        config = Config(gradient_checkpointing=checkpointing, **keys)
        resident, computed = builders.resident(tmp_path, config, model(config)), list[int]()
        layer = resident.model.module.bert.encoder.layer[0].intermediate
        layer.register_forward_pre_hook(lambda *_, computed=computed: computed.append(1))
        delta, _ = Site(0, SHARD, resident).train(resident.model.flat.clone(), 1)
        deltas.append({name: view.clone() for name, view in resident.model.layout.views(delta).items()})
        calls.append(computed)
    assert [len(computed) for computed in calls] == [1, 2]
    for name, delta in deltas[0].items():
        torch.testing.assert_close(deltas[1][name], delta, rtol=1e-4, atol=1e-7, msg=name)
    assert any("layer.0" in name and delta.any() for name, delta in deltas[0].items())
