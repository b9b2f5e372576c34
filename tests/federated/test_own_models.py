"""Each site's own test rows and own model: FedPer, Ditto and fine-tuning, by plain loops on unequal sites."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.errors import JobFailed
from scaling_fl.federated import cohort, metrics, rounds
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.metrics import SiteMetrics
from scaling_fl.federated.server import SGD
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import Shards, SiteTests, write_shards
from scaling_fl.models import adapters, base
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import SHARDS, by_name, loss

# Of the 23 test rows, unequal parts, and none for site 1.
TESTS = [np.array([0, 5, 7]), np.array([], np.int64), np.setdiff1d(np.arange(23), [0, 5, 7])]
KEYS: dict[str, Any] = {
    "num_sites": 3, "num_rounds": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.05, "seed": 4,
    "site_ids": [-1], "site_test": "partitioned",
}  # fmt: skip


def with_tests(worker_sites: Any, folder: Path) -> Any:
    write_shards(folder / "tests", TESTS)
    tests = SiteTests(worker_sites.resident.test, Shards(folder / "tests"))
    return dataclasses.replace(worker_sites, tests=tests)


def measured(resident: Any, module: Any, rows: np.ndarray) -> tuple[float, float]:
    """The loss and the accuracy of `module` on some test rows, one after another."""
    losses, hits = [], []
    module = copy.deepcopy(module).eval()
    for row in rows:
        batch = resident.test.batch(np.array([row]))
        with torch.no_grad():
            logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        losses.append(torch.nn.functional.cross_entropy(logits, batch.labels).item())
        hits.append(int(logits.argmax()) == int(batch.labels))
    return float(np.mean(losses)), float(np.mean(hits))


def steps(
    config: Config, resident: Any, local: Any, batches: Any, rates: Sequence[float] | None = None, **more: Any
) -> None:
    optimiser = torch.optim.SGD(local.parameters(), lr=config.learning_rate)
    for number, indices in enumerate(batches):
        if rates is not None:
            optimiser.param_groups[0]["lr"] = rates[number]
        optimiser.zero_grad()
        loss(resident, local.train(), indices, **more).backward()
        optimiser.step()


def run(
    alone: Callable[..., Any], tmp_path: Path, config: Config, module: Any
) -> tuple[Any, Any, list[dict[str, Any]]]:
    worker_sites, collectives, state = alone(config, module, SHARDS)
    worker_sites, seen = with_tests(worker_sites, tmp_path), list[dict[str, Any]]()
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    return worker_sites, state, seen


def check_measured(results: dict[str, Any], name: str, resident: Any, models: list[Any]) -> None:
    """The metrics of a round are those of the sites' `models` on their own rows."""
    expected = {site: measured(resident, models[site], TESTS[site]) for site in (0, 2)}
    for site, (loss_, accuracy) in expected.items():
        assert results[f"site.{site}.{name}.loss"] == pytest.approx(loss_, rel=1e-3)
        assert results[f"site.{site}.{name}.accuracy"] == pytest.approx(accuracy)
    assert f"site.1.{name}.accuracy" not in results
    assert results[f"{name}.loss"] == pytest.approx((3 * expected[0][0] + 20 * expected[2][0]) / 23, rel=1e-3)


def test_metrics_over_sites_by_hand() -> None:
    """Eleven sites: the worst tenth is two of them."""
    sites = [SiteMetrics(n, 2.0 * n, n, 10) for n in range(10)] + [SiteMetrics(10, 0.0, 30, 30)]
    found = metrics.over_sites("site_test", sites)
    accuracies = [n / 10 for n in range(10)] + [1.0]
    assert found["site_test.accuracy"] == pytest.approx(75 / 130)
    assert found["site_test.loss"] == pytest.approx(90 / 130)
    assert found["site_test.mean_site.accuracy"] == pytest.approx(sum(accuracies) / 11)
    variance = sum((a - sum(accuracies) / 11) ** 2 for a in accuracies) / 11
    assert found["site_test.std_site.accuracy"] == pytest.approx(variance**0.5)
    assert found["site_test.worst_site.accuracy"] == 0
    assert found["site_test.worst_tenth.accuracy"] == pytest.approx(0.05)
    assert found["site_test.best_site.accuracy"] == 1
    assert found["site.3.site_test.accuracy"] == pytest.approx(0.3)
    assert found["site.3.site_test.loss"] == pytest.approx(0.6)
    assert not any(name.startswith("site.") for name in metrics.over_sites("personal", sites, each=False))


def test_the_global_model_is_evaluated_on_each_sites_own_rows(alone: Callable[..., Any], tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS | {"val_batch_size": 4})
    worker_sites, state, seen = run(alone, tmp_path, config, builders.bert())
    assert len(seen) == 4, "the start is evaluated, too"
    assert "site_test.loss" in seen[0]
    resident = worker_sites.resident
    resident.model.load(state.params)
    check_measured(seen[-1], "site_test", resident, [resident.model.module] * 3)
    assert seen[-1]["site_test.loss"] == pytest.approx(seen[-1]["validation.loss"], rel=1e-5), "all rows are at sites"
    assert "personal.loss" not in seen[-1]


def test_a_site_with_one_test_row_is_tested_on_it(
    alone: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "TESTS", [np.array([4]), np.array([], np.int64), np.array([9, 2])])
    config = Config.from_mapping(KEYS | {"ditto_lambda": 0.5, "num_rounds": 1})
    worker_sites, state, seen = run(alone, tmp_path, config, builders.bert())
    resident = worker_sites.resident
    for name, params in (
        ("site_test", state.params),
        ("personal", Site(0, SHARDS[0], resident).own_params(state.params)),
    ):
        resident.model.load(params)
        loss_, accuracy = measured(resident, resident.model.module, TESTS[0])
        assert seen[-1][f"site.0.{name}.loss"] == pytest.approx(loss_, rel=1e-3)
        assert seen[-1][f"site.0.{name}.accuracy"] == accuracy
        assert {f"site.{site}.{name}.loss" for site in (0, 2)} == {
            key for key in seen[-1] if key.endswith(f".{name}.loss")
        }


def test_fedper_keeps_the_head_at_the_sites(alone: Callable[..., Any], tmp_path: Path) -> None:
    """Against a plain loop: sites average the encoder, and go on from their own heads. Two of three take part."""
    config = Config.from_mapping(KEYS | {"personal": "head", "sites_per_round": 2})
    module = builders.bert(dropout=0.0)
    start = copy.deepcopy(module)
    worker_sites, state, seen = run(alone, tmp_path, config, module)
    resident = worker_sites.resident
    own = [copy.deepcopy(start) for _ in SHARDS]
    encoder = copy.deepcopy(start.bert.state_dict())
    for round_ in (1, 2, 3):
        weights = cohort.sample(config, [len(shard) for shard in SHARDS], round_)
        total = {name: torch.zeros_like(value) for name, value in encoder.items()}
        for site, weight in weights.items():
            own[site].bert.load_state_dict(encoder)
            steps(config, resident, own[site], local_batches(config, resident.train, SHARDS[site], round_, site))
            for name, value in own[site].bert.state_dict().items():
                total[name] += weight * value
        encoder = total
    for model in own:
        model.bert.load_state_dict(encoder)
    found = by_name(resident, state.params)
    for name, value in encoder.items():
        torch.testing.assert_close(found[f"bert.{name}"], value, rtol=1e-3, atol=1e-5)
    assert (encoder["pooler.dense.weight"] - start.bert.pooler.dense.weight).abs().max() > 1e-2
    assert torch.equal(by_name(resident, state.params)["classifier.weight"], start.classifier.weight)
    for site, model in enumerate(own):
        params = by_name(resident, Site(site, SHARDS[site], resident).own_params(state.params))
        torch.testing.assert_close(params["classifier.weight"], model.classifier.weight.detach(), rtol=1e-3, atol=1e-5)
    check_measured(seen[-1], "personal", resident, own)
    assert "site_test.loss" not in seen[-1], "the server has no whole model"
    whole = [measured(resident, model, np.arange(23)) for model in own]
    assert seen[-1]["validation.loss"] == pytest.approx(np.mean([value for value, _ in whole]), rel=1e-3)


def test_share_a_averages_one_factor_and_keeps_the_other_at_the_sites(
    alone: Callable[..., Any], tmp_path: Path
) -> None:
    """Against a plain loop (FedSA-LoRA, Guo et al. 2024). Two of three sites take part, and B isn't 0 at the start."""
    keys = {"trainable": "lora", "lora_rank": 3, "lora_aggregation": "share_a", "sites_per_round": 2}
    config = Config.from_mapping(KEYS | keys)
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    torch.manual_seed(2)
    for name in adapters.names(module):
        torch.nn.init.normal_(module.get_parameter(name), std=0.1)
    start = copy.deepcopy(module)
    worker_sites, state, _ = run(alone, tmp_path, config, module)
    resident, own = worker_sites.resident, [copy.deepcopy(start) for _ in SHARDS]
    trained = {name: value.detach().clone() for name, value in start.named_parameters() if value.requires_grad}
    shared = {name: value for name, value in trained.items() if ".lora_A." in name}
    for round_ in (1, 2, 3):
        total = {name: torch.zeros_like(value) for name, value in shared.items()}
        for site, weight in cohort.sample(config, [len(shard) for shard in SHARDS], round_).items():
            own[site].load_state_dict(shared, strict=False)
            steps(config, resident, own[site], local_batches(config, resident.train, SHARDS[site], round_, site))
            for name in shared:
                total[name] += weight * own[site].get_parameter(name).detach()
        shared = total
    found = by_name(resident, state.params)
    assert found.keys() == trained.keys()
    for name, value in trained.items():
        torch.testing.assert_close(found[name], shared.get(name, value), rtol=1e-3, atol=1e-5)
    for site, model in enumerate(own):
        params = by_name(resident, Site(site, SHARDS[site], resident).own_params(state.params))
        for name in trained:
            expected = shared[name] if name in shared else model.get_parameter(name).detach()
            torch.testing.assert_close(params[name], expected, rtol=1e-3, atol=1e-5)
    moved = [(model.classifier.weight - own[0].classifier.weight).abs().max() for model in own]
    assert min(moved[1:]) > 1e-3, "each site has a head of its own"


@pytest.mark.parametrize(("dropout", "schedule"), [(0.0, "constant"), (0.2, "linear")])
def test_ditto_is_algorithm_1_of_li_et_al_2021(
    alone: Callable[..., Any], tmp_path: Path, dropout: float, schedule: str
) -> None:
    """Both models follow the schedule, each with dropout of its own that differs by round and site."""
    config = Config.from_mapping(KEYS | {"ditto_lambda": 2.0, "sites_per_round": 2, "lr_schedule": schedule})
    module = builders.bert(dropout=dropout)
    w = copy.deepcopy(module)
    start = copy.deepcopy(module)
    worker_sites, state, seen = run(alone, tmp_path, config, module)
    resident = worker_sites.resident
    own: list[Any] = [None] * 3
    for round_ in (1, 2, 3):
        weights = cohort.sample(config, [len(shard) for shard in SHARDS], round_)
        moves = [torch.zeros_like(p) for p in w.parameters()]
        for site, weight in weights.items():
            batches = list(local_batches(config, resident.train, SHARDS[site], round_, site))
            times = [(round_ - 1 + (step + 0.5) / len(batches)) / 3 for step in range(len(batches))]
            rates = [0.05 * (1 - time) if schedule == "linear" else 0.05 for time in times]
            local, own[site] = copy.deepcopy(w), own[site] or copy.deepcopy(w)
            torch.manual_seed(seeding.torch_seed(4, "dropout", round_, site))
            steps(config, resident, local, batches, rates)
            torch.manual_seed(seeding.torch_seed(4, "ditto", round_, site))
            steps(config, resident, own[site], batches, rates, mu=2.0, server=w)
            for move, p, q in zip(moves, local.parameters(), w.parameters(), strict=True):
                move += weight * (p - q).detach()
        with torch.no_grad():
            for p, move in zip(w.parameters(), moves, strict=True):
                p.add_(move)
    assert_same_movement(by_name(resident, state.params), w, start)
    for site in range(3):
        found = by_name(resident, Site(site, SHARDS[site], resident).own_params(state.params))
        assert_same_movement(found, own[site] or w, start)
    check_measured(seen[-1], "personal", resident, [model or w for model in own])
    check_measured(seen[-1], "site_test", resident, [w] * 3)


def test_the_global_model_is_the_same_with_and_without_ditto(alone: Callable[..., Any], tmp_path: Path) -> None:
    params = []
    for name, keys in (("with", {"ditto_lambda": 2.0}), ("without", {})):
        (tmp_path / name).mkdir()
        config = Config.from_mapping(KEYS | keys)
        worker_sites, collectives, state = builders.worker(tmp_path / name, config, builders.bert(), SHARDS)
        rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
        params.append(state.params.clone())
        collectives.close()
    assert torch.equal(*params)


def test_fine_tuning_before_the_evaluation_changes_nothing_else(alone: Callable[..., Any], tmp_path: Path) -> None:
    results, params = [], []
    for name, keys in (("with", {"fine_tune_steps": 3}), ("without", {})):
        (tmp_path / name).mkdir()
        config = Config.from_mapping(KEYS | {"lr_schedule": "linear"} | keys)  # which fine-tuning doesn't follow
        module = builders.bert(dropout=0.2)
        worker_sites, collectives, state = builders.worker(tmp_path / name, config, module, SHARDS)
        worker_sites, seen = with_tests(worker_sites, tmp_path / name), list[dict[str, Any]]()
        rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, r, s=seen: s.append(r))
        results.append(seen)
        params.append(state.params.clone())
        collectives.close()
    assert torch.equal(*params)
    assert [r["site_test.loss"] for r in results[0]] == [r["site_test.loss"] for r in results[1]]
    resident, models = worker_sites.resident, []
    for site, shard in enumerate(SHARDS):
        resident.model.load(params[0])
        model = copy.deepcopy(resident.model.module)
        stream = dataclasses.replace(config, num_local_steps=3)
        torch.manual_seed(seeding.torch_seed(4, "fine-tuning", 3, site))
        steps(config, resident, model, local_batches(stream, resident.train, shard, 3, site))
        models.append(model)
    check_measured(results[0][-1], "personal", resident, models)
    assert "personal.loss" not in results[0][0], "there is nothing of a site's own at the start"


def test_local_only_models_are_tested_on_their_own_rows(alone: Callable[..., Any], tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS | {"baseline": "local_only"})
    worker_sites, state, seen = run(alone, tmp_path, config, builders.bert())
    resident, models = worker_sites.resident, []
    for site, shard in enumerate(SHARDS):
        resident.model.load(Site(site, shard, resident).own_params(state.params).clone())
        models.append(copy.deepcopy(resident.model.module))
    check_measured(seen[-1], "personal", resident, models)
    assert "site_test.loss" not in seen[-1]


@pytest.mark.parametrize(
    ("keys", "own_steps", "others"),
    [
        ({}, 0, 0), ({"ditto_lambda": 0.5}, 2, 3 * 12), ({"fine_tune_steps": 4}, 2 + 2 * 4, 0), ({"fairness_q": 1.0}, 0, 3 * 3),
        ({"scaffold": "I", "weighting": "uniform"}, 0, 3 * 12), ({"log_gradient_norms": True}, 0, 4 * 10),
    ],
)  # fmt: skip
def test_the_progress_counts_local_steps_and_evaluation_batches(
    alone: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], own_steps: int, others: int
) -> None:
    """Not what methods train or evaluate beside that, such as Ditto's own models: the console plans without it. Yet each of
    their batches is a sign of life: a worker that gives none counts as hung.
    """
    config = Config.from_mapping(KEYS | keys)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    counted, alive = list[None](), list[None]()
    resident = dataclasses.replace(
        worker_sites.resident, on_step=lambda: counted.append(None), on_alive=lambda: alive.append(None)
    )
    worker_sites = with_tests(dataclasses.replace(worker_sites, resident=resident), tmp_path)
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
    local = sum(-(-len(shard) // 4) for shard in SHARDS)
    batches = 1 + 1  # of the test set, and of all own test rows
    assert local == 12
    assert len(counted) == 3 * (local + batches + own_steps) + batches
    assert len(alive) == others


def test_a_model_of_dittos_that_diverges_stops_the_job(alone: Callable[..., Any]) -> None:
    """λ times the learning rate above 2: the pull overshoots further and further, at first in this model alone."""
    config = Config.from_mapping(KEYS | {"ditto_lambda": 1e30, "site_ids": [-1]})
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    with pytest.raises(JobFailed, match=r"the parameters of site . are no longer finite"):
        rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
