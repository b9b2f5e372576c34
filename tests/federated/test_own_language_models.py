"""Bits per byte and perplexity of sites' own language models, by plain evaluation of each on unequal sites."""

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import rounds
from scaling_fl.federated.server import SGD
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import Shards, SiteTests, write_shards
from scaling_fl.models import base
from tests import builders
from tests.federated.test_language_model import KEYS, blocks, plain_loss

SHARE_A = {"trainable": "lora", "lora_rank": 2, "lora_aggregation": "share_a", "learning_rate": 2.0}
TESTS = [[0, 7], [], [1, 2, 3, 4]]  # blocks of the test set; the last one, 7, is shorter than the others


def trained(
    alone: Callable[..., Any], folder: Path, more: dict[str, Any], **of_resident: Any
) -> tuple[Any, Any, list[Any], dict[str, Any]]:
    """Train on three sites; return the resident model, the server's state, the sites, and the last round's metrics."""
    config, module = Config.from_mapping(KEYS | more), builders.decoder()
    base.freeze(module, config)
    shards, seen = blocks(folder), list[dict[str, Any]]()
    worker_sites, collectives, state = alone(config, module, shards)
    resident = dataclasses.replace(worker_sites.resident, **of_resident)
    write_shards(folder / "tests", [np.array(rows, np.int64) for rows in TESTS])
    tests = SiteTests(resident.test, Shards(folder / "tests")) if config.site_test else None
    worker_sites = dataclasses.replace(worker_sites, resident=resident, tests=tests)
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    return resident, state, [Site(number, shard, resident) for number, shard in enumerate(shards)], seen[-1]


def nats(resident: Any, store: Any, params: torch.Tensor, rows: Any) -> tuple[float, int]:
    """The loss of a model on some blocks, summed over the predicted tokens, and their number."""
    resident.model.load(params)
    module = copy.deepcopy(resident.model.module).eval()
    with torch.no_grad():
        found = [plain_loss(store, module, np.array([row])) for row in rows]
    return sum(float(loss) * count for loss, count in found), sum(count for _, count in found)


def right(resident: Any, store: Any, params: torch.Tensor, rows: Any) -> int:
    """The number of tokens of some blocks that a model finds the most probable."""
    resident.model.load(params)
    module, found = copy.deepcopy(resident.model.module).eval(), 0
    for row in rows:
        batch = store.batch(np.array([row]))
        with torch.no_grad():
            guesses = module(input_ids=batch.input_ids).logits.flatten(0, 1)[batch.positions].argmax(-1)
        found += int((guesses == batch.labels).sum())
    return found


@pytest.mark.parametrize("more", [SHARE_A, {"baseline": "local_only"}])
def test_bits_per_byte_are_the_mean_of_the_sites_own(
    alone: Callable[..., Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    """Each site's model predicts the whole test set, so that sites count the same, however much text they have."""
    resident, state, sites, results = trained(alone, tmp_path, more)
    text = "".join(builders.texts_and_labels(8, 6)[0])
    losses = []
    for site in sites:
        total, count = nats(resident, resident.test, site.own_params(state.params), range(len(resident.test)))
        losses.append(total / count)
    assert np.std(losses) > 0.01, "the sites' models differ"
    assert results["validation.loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert results["validation.perplexity"] == pytest.approx(np.mean([math.exp(loss) for loss in losses]), rel=1e-5)
    # Bits per token × tokens ÷ bytes. A block's first token, which isn't predicted, counts as the others do.
    per_byte = np.mean(losses) / math.log(2) * len(resident.test.tokens) / len(text.encode())
    assert results["validation.bits_per_byte"] == pytest.approx(per_byte, rel=1e-5)
    assert results["validation.tokens"] == len(resident.test.tokens) - len(resident.test)


def test_bits_per_byte_of_held_back_blocks_count_their_own_bytes(alone: Callable[..., Any], tmp_path: Path) -> None:
    held_back = np.array([1, 6, 7])
    resident, state, sites, results = trained(alone, tmp_path, SHARE_A, held_back=held_back)
    losses = []
    for site in sites:
        total, count = nats(resident, resident.train, site.own_params(state.params), held_back)
        losses.append(total / count)
    tokens, num_bytes = (
        int(of_rows[held_back].sum()) for of_rows in (resident.train.lengths, resident.train.num_bytes)
    )
    assert 0 < num_bytes < resident.train.num_bytes.sum()
    per_byte = np.mean(losses) / math.log(2) * tokens / num_bytes
    assert results["held_back.bits_per_byte"] == pytest.approx(per_byte, rel=1e-5)


@pytest.mark.parametrize("more", [SHARE_A, {"ditto_lambda": 0.5}, {"fine_tune_steps": 3}])
def test_own_models_predict_the_tokens_of_their_sites_own_blocks(
    alone: Callable[..., Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    """Over sites, the loss is per predicted token. A site without test rows has no metrics."""
    resident, state, sites, results = trained(alone, tmp_path, more | {"site_test": "partitioned"})
    own = {
        site.number: nats(resident, resident.test, site.tuned_params(state.params, 3), TESTS[site.number])
        for site in sites
    }
    for number in (0, 2):
        total, count = own[number]
        assert results[f"site.{number}.personal.loss"] == pytest.approx(total / count, rel=1e-5)
    assert "site.1.personal.loss" not in results
    (first, of_first), (last, of_last) = own[0], own[2]
    assert of_first != of_last
    assert results["personal.loss"] == pytest.approx((first + last) / (of_first + of_last), rel=1e-5)
    assert ("site_test.loss" in results) == ("lora_aggregation" not in more)
    # With a global model, bits per byte and perplexity on the test set are its own, not those of the sites' models.
    if "lora_aggregation" not in more:
        total, count = nats(resident, resident.test, state.params, range(len(resident.test)))
        text = "".join(builders.texts_and_labels(8, 6)[0])
        per_byte = total / count / math.log(2) * len(resident.test.tokens) / len(text.encode())
        assert results["validation.bits_per_byte"] == pytest.approx(per_byte, rel=1e-5)


def test_the_global_model_predicts_the_tokens_of_each_sites_own_blocks(
    alone: Callable[..., Any], tmp_path: Path
) -> None:
    """A block counts by its tokens, of which several are right."""
    more = {"site_test": "partitioned", "optimiser": "adam", "learning_rate": 0.02, "num_rounds": 8}
    resident, state, _, results = trained(alone, tmp_path, more)
    hits = {site: right(resident, resident.test, state.params, TESTS[site]) for site in (0, 2)}
    assert hits[2] > len(TESTS[2])
    for site, of_site in hits.items():
        total, count = nats(resident, resident.test, state.params, TESTS[site])
        assert results[f"site.{site}.site_test.loss"] == pytest.approx(total / count, rel=1e-5)
        assert results[f"site.{site}.site_test.accuracy"] == pytest.approx(of_site / count)
