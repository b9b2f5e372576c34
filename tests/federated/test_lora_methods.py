"""Methods that work on a site's whole delta, beside adapters: each by its definition, from deltas of real training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated import aggregation
from scaling_fl.federated.aggregation.lora_product import OfProducts
from scaling_fl.models import adapters
from tests import builders
from tests.federated.test_robust import CASES, SHARDS
from tests.federated.training import ADAPTERS, model

KEYS = {
    "num_sites": 7,
    "site_ids": [-1],
    "batch_size": 3,
    "optimiser": "sgd",
    "learning_rate": 0.05,
    "seed": 3,
    **ADAPTERS,
}


def one_round(folder: Path, keys: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, Any]:
    """What the sites send (7, size), what it becomes (size,), and the layout of both."""
    config = Config.from_mapping(KEYS | keys)
    worker_sites, collectives, state = builders.worker(folder, config, model(config), SHARDS)
    combination: Any = aggregation.begin(worker_sites, collectives, state, 1)
    size = len(state.params)
    sent = np.zeros((7, size), np.float32)
    for site in worker_sites.participants(1):
        delta, _ = site.train(state.params, 1, state.extra)
        sent[site.number] = delta[:size].numpy()
        combination.add(site.number, delta)
    combined = torch.cat([delta.clone() for _, delta in combination.combined()])
    collectives.close()  # a process has one group at a time
    layout = worker_sites.resident.model.layout
    module = worker_sites.resident.model.module
    assert adapters.names(module) <= layout.views(combined).keys()
    assert "bert.pooler.dense.base_layer.weight" not in layout.views(combined), "the base doesn't travel"
    return sent, combined.numpy(), layout


@pytest.mark.parametrize(("keys", "by_hand"), CASES, ids=lambda value: "-".join(value) if type(value) is dict else "")
def test_robust_aggregation(tmp_path: Path, keys: dict[str, Any], by_hand: Any) -> None:
    sent, found, _ = one_round(tmp_path, keys)
    expected = by_hand(sent.astype(np.float64))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_products_are_summed_in_the_order_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in that in which workers have trained them: the last digits would depend on the number of workers."""
    config, summed = Config.from_mapping(KEYS | {"lora_aggregation": "stack"}), list[int]()
    worker_sites, collectives, state = builders.worker(tmp_path, config, model(config), SHARDS)
    combination: Any = aggregation.begin(worker_sites, collectives, state, 1)
    combination.inner.sites = {site: {} for site in (5, 0, 3)}
    monkeypatch.setattr(OfProducts, "_deltas", lambda self, sites: summed.extend(sites) or {})
    list(combination.inner.combined())
    collectives.close()
    assert summed == [0, 3, 5]


def test_masks_cancel(tmp_path: Path) -> None:
    _, plain, _ = one_round(tmp_path, {})
    _, masked, _ = one_round(tmp_path, {"secure_aggregation": True})
    assert plain.any()
    assert np.array_equal(masked, plain)


def test_a_private_mean(tmp_path: Path) -> None:
    """The clip lies between the lengths of the deltas."""
    private = {"dp_clip": 0.15, "dp_noise_multiplier": 0.7, "dp_delta": 1e-3, "dp_seed": 5, "weighting": "uniform"}
    sent, found, layout = one_round(tmp_path, private)
    lengths = np.linalg.norm(sent.astype(np.float64), axis=1)
    assert lengths.min() < 0.15 < lengths.max()
    noise = 0.7 * 0.15 * seeding.generator(5, "dp noise", 1).standard_normal(len(found) + 16)[: len(found)]
    expected = (sum(delta * min(1, 0.15 / length) for delta, length in zip(sent, lengths, strict=True)) + noise) / 7
    views = layout.views(torch.from_numpy(expected))
    for name, value in layout.views(torch.from_numpy(found)).items():
        np.testing.assert_allclose(value.numpy(), views[name].numpy(), rtol=1e-4, atol=2e-5)


def test_the_largest_values_alone_are_sent(tmp_path: Path) -> None:
    whole, _, layout = one_round(tmp_path, {})
    sent, _, _ = one_round(tmp_path, {"upload": "topk", "topk_share": 0.1})
    count = sum(shape.numel() for _, start, shape in layout.entries if start < layout.trained)
    for delta, of_site in zip(whole, sent, strict=True):
        kept = of_site != 0
        assert kept.sum() == round(0.1 * count) == 56
        np.testing.assert_array_equal(of_site[kept], delta[kept])
        assert np.abs(delta[~kept]).max() <= np.abs(delta[kept]).min()
