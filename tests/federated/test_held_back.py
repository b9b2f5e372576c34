"""Held-back training examples (`validation_fraction`), and the checkpoints that `keep_best` keeps by them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from scaling_fl import state_file
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import metrics, rounds
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.server import SGD
from scaling_fl.federated.worker_sites import Shards
from scaling_fl.runtime import launcher
from scaling_fl.tracking.round_progress import RoundProgress
from tests import builders

HELD_BACK = np.array([3, 4, 9, 11, 20, 21, 22, 30, 39])


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launcher.prepare(config, str(folder), lambda event: None)


@pytest.mark.parametrize(("sites", "iid"), [(1, True), (2, False), (4, True)])
def test_every_row_is_held_back_or_in_exactly_one_shard(
    small_config: Config, tmp_path: Path, sites: int, iid: bool
) -> None:
    config = dataclasses.replace(small_config, site_ids=(-1,) * sites, iid_split=iid, validation_fraction=0.2)
    plan = prepare(config, tmp_path / "work")
    held_back = np.load(tmp_path / "work" / "held_back.npy")
    shards_file = Shards(tmp_path / "work")
    shards = [shards_file[site] for site in range(sites)]
    assert sorted(np.concatenate([held_back, *shards]).tolist()) == list(range(41))
    # round(0.2 × 41) = 8 rows; the sites share the other 33.
    assert (plan.num_held_back, plan.num_train, sum(plan.shard_sizes)) == (8, 33, 33)
    assert max(plan.shard_sizes) - min(plan.shard_sizes) <= 1
    labels = builders.texts_and_labels(41)[1]
    for label in range(3):
        assert abs((labels[held_back] == label).sum() - 8 * (labels == label).mean()) < 1
    assert "8 of 41 training rows are held back from all sites" in plan.notes
    assert RoundProgress(plan, 0).evaluation_steps == 2, "one batch of the 9 test texts, one of the 8"
    one_site = dataclasses.replace(small_config, site_ids=(-1,), validation_fraction=0.2)
    prepare(one_site, tmp_path / "other")
    assert np.array_equal(np.load(tmp_path / "other" / "held_back.npy"), held_back), "whatever the number of sites"


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_held_back_examples_are_evaluated_once_each_by_any_number_of_workers(tmp_path: Path, num_workers: int) -> None:
    config = Config(val_batch_size=2)  # 9 examples: four full batches and one of one
    resident = dataclasses.replace(builders.resident(tmp_path, config, builders.bert()), held_back=HELD_BACK)
    params = resident.model.flat.clone()
    parts = [
        evaluate(resident, params, worker, num_workers, examples=resident.training_rows(HELD_BACK))
        for worker in reversed(range(num_workers))
    ]
    result = metrics.validation((batch for part in parts for batch in part), "held_back")

    resident.model.module.eval()
    losses, hits = [], 0
    with torch.inference_mode():
        for index in HELD_BACK:
            batch = resident.train.batch(np.array([index]))
            logits = resident.model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            losses.append(cross_entropy(logits, batch.labels).item())
            hits += int(logits.argmax() == batch.labels)
    assert result["held_back.examples"] == 9
    assert result["held_back.loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["held_back.accuracy"] == pytest.approx(hits / 9)
    alone = metrics.validation(
        evaluate(resident, params, 0, 1, examples=resident.training_rows(HELD_BACK)), "held_back"
    )
    assert result == alone, "bitwise: sums run in batch order"


@pytest.mark.parametrize("some", [True, False])
def test_held_back_metrics_accompany_every_test_set_evaluation(tmp_path: Path, some: bool) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=3, eval_every=2, batch_size=16)
    rest = np.setdiff1d(np.arange(40), HELD_BACK)
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), [rest[:7], rest[7:]])
    resident = worker_sites.resident
    if some:
        worker_sites = dataclasses.replace(worker_sites, resident=dataclasses.replace(resident, held_back=HELD_BACK))
    seen: dict[int, dict[str, float]] = {}
    rounds.run(
        config, worker_sites, collectives, state, SGD(), lambda state, results: seen.update({state.round: results})
    )
    collectives.close()
    for round_, results in seen.items():
        assert ("validation.loss" in results) == (round_ in (0, 2, 3))
        for name in ("loss", "accuracy", "macro_f1"):
            assert (f"held_back.{name}" in results) == (some and round_ in (0, 2, 3))
    if some:
        assert seen[0]["held_back.loss"] != seen[0]["validation.loss"]
    assert state.predictions is not None
    assert state.predictions.rows.tolist() == list(range(len(resident.test))), "predictions are for the test set alone"
    sizes = {"validation": len(resident.test)} | ({"held_back": 9} if some else {})
    assert {name: confusion.sum() for name, confusion in state.confusion.items()} == sizes


def train(plan: Plan) -> dict[int, dict[str, Any]]:
    """Train all rounds; return their metrics."""
    seen: dict[int, dict[str, Any]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            seen[event["round"]] = event["metrics"]

    launcher.train(plan, keep)
    return seen


@pytest.mark.parametrize(("metric", "choose"), [("held_back.loss", min), ("held_back.accuracy", max)])
def test_the_best_rounds_checkpoint_is_kept_as_well(
    small_config: Config, tmp_path: Path, metric: str, choose: Callable[..., Any]
) -> None:
    # A learning rate at which the loss fluctuates; rounds without evaluation or checkpoint don't count.
    config = dataclasses.replace(
        small_config, num_rounds=9, validation_fraction=0.3, keep_best=metric, keep_checkpoints=1, eval_every=2,
        checkpoint_every=3, learning_rate=0.05, optimiser="sgd", batch_size=4,
    )  # fmt: skip
    values = {round_: results.get(metric) for round_, results in train(prepare(config, tmp_path / "work")).items()}
    assert {round_ for round_, value in values.items() if value is not None} == {0, 2, 4, 6, 8, 9}
    best = choose((6, 9), key=values.__getitem__)
    assert CheckpointStore(str(tmp_path / "out")).rounds() == sorted({9, best}, reverse=True)
    header = state_file.read_state(tmp_path / "out" / "round-000009.safetensors")[1]
    assert header["best"] == {"metric": metric, "round": best, "value": values[best]}


def test_choosing_by_the_test_set_is_noted(small_config: Config, tmp_path: Path) -> None:
    by_test = dataclasses.replace(small_config, keep_best="validation.accuracy")
    notes = prepare(by_test, tmp_path / "a").notes
    assert any(
        note.startswith("keep_best=validation.accuracy chooses by the test set")
        and "validation_fraction=0.1 keep_best=held_back.accuracy" in note
        for note in notes
    )
    by_rows = dataclasses.replace(small_config, keep_best="held_back.accuracy", validation_fraction=0.1)
    assert not any("test set" in note for note in prepare(by_rows, tmp_path / "b").notes)


def test_a_job_resumes_only_with_the_same_rows_held_back(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, validation_fraction=0.2)
    train(prepare(config, tmp_path / "a"))
    more = dataclasses.replace(config, num_rounds=2)
    with pytest.raises(UserError, match=r"validation_fraction was 0\.2, is now 0\.0"):
        prepare(dataclasses.replace(more, validation_fraction=0.0), tmp_path / "b")
    assert (
        prepare(dataclasses.replace(more, keep_checkpoints=0, keep_best="validation.loss"), tmp_path / "c").round == 1
    )
