"""What studies vary and measure: heads that sites draw themselves, no attention masks, norms of gradients."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.data.token_store import Batch
from scaling_fl.federated.gradient_norms import gradient_norms, layer_of
from scaling_fl.federated.site import Site
from scaling_fl.models import new_parameters
from tests import builders
from tests.federated.training import SHARD, SHARDS, by_name, digest, train_federated

HEAD = ("classifier.bias", "classifier.weight")
STILL: dict[str, Any] = {"learning_rate": 1e-30, "optimiser": "sgd", "batch_size": 8}  # the model doesn't move


def sites_head(seed: int, site: int) -> torch.Tensor:
    """The classifier's weights (3, 16) that a site draws, by torch alone."""
    torch.manual_seed(seeding.torch_seed(seed, "head", site))
    return torch.empty(3, 16).normal_(0.0, 0.2)  # builders.bert has initializer_range=0.2


def trained(alone: Callable[..., Any], config: Config) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The parameters by name before and after all rounds."""
    worker_sites, collectives, state = alone(config, builders.bert(dropout=0.0), SHARDS)
    worker_sites = dataclasses.replace(
        worker_sites, resident=dataclasses.replace(worker_sites.resident, new_parameters=HEAD)
    )
    before = by_name(worker_sites.resident, state.params.clone())
    train_federated(config, worker_sites, collectives, state)
    return before, by_name(worker_sites.resident, state.params)


def test_after_round_1_the_head_is_the_weighted_mean_of_the_sites_own(alone: Callable[..., Any]) -> None:
    config = Config(num_rounds=1, num_sites=3, head_init="independent", seed=6, **STILL)
    before, after = trained(alone, config)
    weights = [len(shard) / 40 for shard in SHARDS]
    expected = sum(weight * sites_head(6, site) for site, weight in enumerate(weights))
    torch.testing.assert_close(after["classifier.weight"], expected, rtol=1e-5, atol=1e-6)
    assert not after["classifier.bias"].any()
    for name in before.keys() - set(HEAD):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-7)


def test_later_rounds_begin_with_the_shared_head(alone: Callable[..., Any]) -> None:
    _, after = trained(alone, Config(num_rounds=3, num_sites=3, head_init="independent", seed=6, **STILL))
    weights = [len(shard) / 40 for shard in SHARDS]
    expected = sum(weight * sites_head(6, site) for site, weight in enumerate(weights))
    torch.testing.assert_close(after["classifier.weight"], expected, rtol=1e-5, atol=1e-6)


def test_only_round_1_draws_a_sites_own_head(tmp_path: Path) -> None:
    """A site that doesn't move leaves a delta of 0, unless it begins with another head than the server's."""
    config = Config(num_sites=3, head_init="independent", seed=6, **STILL)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.0))
    resident = dataclasses.replace(resident, new_parameters=HEAD)
    start = resident.model.flat.clone()
    for round_, drawn in ((1, True), (2, False)):
        delta, _ = Site(1, SHARD, resident).train(start, round_)
        moved = by_name(resident, delta)
        assert bool(moved["classifier.weight"].abs().max() > 1e-2) == drawn
        torch.testing.assert_close(moved["bert.pooler.dense.weight"], torch.zeros(16, 16), rtol=0, atol=1e-7)


def test_a_shared_head_stays_what_it_is(alone: Callable[..., Any]) -> None:
    before, after = trained(alone, Config(num_rounds=1, num_sites=3, **STILL))
    torch.testing.assert_close(after["classifier.weight"], before["classifier.weight"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_only_the_named_parameters_are_drawn_also_if_they_were_loaded(tmp_path: Path, kind: str) -> None:
    folder = builders.pretrained(tmp_path, kind)
    module = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    module.save_pretrained(tmp_path / "saved")
    module = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    head = [name for name, _ in module.named_parameters() if name.startswith(("classifier.", "pre_classifier."))]
    before = {name: parameter.clone() for name, parameter in module.named_parameters()}
    new_parameters.draw(module, head, seed=3)
    for name, parameter in module.named_parameters():
        drawn = name in head and name.endswith("weight")
        assert torch.equal(parameter, before[name]) != drawn, name
    once = module.classifier.weight.clone()
    new_parameters.draw(module, head, seed=3)
    assert torch.equal(module.classifier.weight, once)
    module.classifier.bias.data.fill_(3.0)  # the library would set it to 0 along with the weight
    new_parameters.draw(module, ["classifier.weight"], seed=4)
    assert not torch.equal(module.classifier.weight, once)
    assert module.classifier.bias.tolist() == [3.0, 3.0, 3.0]
    new_parameters.draw(module, [new_parameters.ALL], seed=4)
    assert not torch.equal(next(module.parameters()), next(iter(before.values())))


def test_without_masks_padding_counts_as_text(tmp_path: Path) -> None:
    resident = builders.resident(tmp_path, Config(), builders.bert(dropout=0.0))
    resident.model.module.eval()
    without = dataclasses.replace(resident, config=dataclasses.replace(resident.config, attention_mask=False))
    batch = resident.train.batch(SHARD)
    assert (batch.attention_mask == 0).any()
    plain = resident.model.module(input_ids=batch.input_ids).logits
    torch.testing.assert_close(without.logits(batch), plain)
    assert not torch.allclose(resident.logits(batch), plain, atol=1e-4)
    one = Batch(
        *(
            value[:1, : int(batch.attention_mask[0].sum())] if value is not None and value.ndim == 2 else value
            for value in batch
        )
    )
    torch.testing.assert_close(without.logits(one), resident.logits(one))


def test_gradient_norms_are_those_of_a_plain_backward_pass(tmp_path: Path) -> None:
    config = Config(batch_size=7, seed=3)
    resident = builders.resident(tmp_path, config, builders.bert(dropout=0.5), count=90)
    resident = dataclasses.replace(resident, new_parameters=HEAD)
    params = resident.model.flat.clone()
    found = gradient_norms(resident, params)
    module = builders.bert(dropout=0.0)
    rows = seeding.generator(3, "probe").permutation(90)[:64]
    batch = resident.train.batch(np.asarray(rows))
    logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    cross_entropy(logits, batch.labels).backward()
    squares: dict[str, float] = {}
    for name, parameter in module.named_parameters():
        for key in (layer_of(name), "head" if name in HEAD else "pretrained"):
            squares[key] = squares.get(key, 0.0) + float((parameter.grad.double() ** 2).sum())
    assert found.keys() == {f"gradient_norm.{key}" for key in squares}
    assert set(squares) == {
        "bert.embeddings",
        "bert.encoder.layer.0",
        "bert.pooler",
        "classifier",
        "head",
        "pretrained",
    }
    for key, square in squares.items():
        assert found[f"gradient_norm.{key}"] == pytest.approx(math.sqrt(square), rel=1e-4)
    assert gradient_norms(resident, params) == found
    new = gradient_norms(dataclasses.replace(resident, new_parameters=(new_parameters.ALL,)), params)
    assert "gradient_norm.pretrained" not in new, "model=tiny has no pre-trained parameters"
    whole = found["gradient_norm.head"] ** 2 + found["gradient_norm.pretrained"] ** 2
    assert new["gradient_norm.head"] == pytest.approx(math.sqrt(whole))


@pytest.mark.parametrize("keys", [{"baseline": "local_only"}, {"personal": "head"}])
def test_without_a_global_model_there_are_no_norms_of_its_gradient(
    alone: Callable[..., Any], keys: dict[str, Any]
) -> None:
    config = Config(num_rounds=1, num_sites=3, log_gradient_norms=True, batch_size=16, **keys)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    for results in train_federated(config, worker_sites, collectives, state):
        assert not [name for name in results if name.startswith("gradient_norm")]


def test_measuring_gradient_norms_changes_no_result_and_is_recorded_each_round(alone: Callable[..., Any]) -> None:
    config = Config(num_rounds=2, num_sites=3, learning_rate=0.05, eval_every=2)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    initial, digests = state.params.clone(), []
    for logs in (False, True):
        config = dataclasses.replace(config, log_gradient_norms=logs)
        resident = dataclasses.replace(worker_sites.resident, config=config)
        state.params.copy_(initial)
        state.round = 0
        results = train_federated(config, dataclasses.replace(worker_sites, resident=resident), collectives, state)
        digests.append(digest(state.params))
        assert ["gradient_norm.classifier" in metrics for metrics in results] == [logs] * 3
    assert digests[0] == digests[1] != digest(initial)


def test_the_draw_of_a_head_does_not_change_the_order_or_dropout_of_a_site(tmp_path: Path) -> None:
    """With a learning rate of nearly 0 the loss depends on dropout and head alone."""
    losses = []
    for init in ("shared", "independent"):
        config = Config(head_init=init, **STILL)
        resident = builders.resident(tmp_path, config, builders.bert(dropout=0.5))
        params = resident.model.flat.clone()
        losses.append([Site(1, SHARD, resident).train(params, round_)[1].loss for round_ in (1, 2)])
    assert losses[0] == losses[1], "no parameter is new, so that nothing is drawn"
