import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.federated import evaluation, metrics
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.resident import Resident
from tests import builders


def test_evaluation_uses_no_dropout_and_leaves_parameters_unchanged(resident: Resident) -> None:
    params = resident.model.flat.clone()
    kept = params.clone()
    resident.model.module.train()
    first = evaluate(resident, params, 0, 1)
    second = evaluate(resident, params, 0, 1)
    assert [batch.loss_sum for batch in first] == [batch.loss_sum for batch in second]
    assert torch.equal(params, kept)


@pytest.mark.parametrize("fits", [5, 2, 1, 0])
def test_an_evaluation_batch_that_exceeds_memory_is_split(tmp_path: Path, fits: int) -> None:
    resident = builders.resident(tmp_path, Config(val_batch_size=10), builders.bert())
    params = resident.model.flat.clone()
    expected = evaluate(resident, params, 0, 1)
    sizes: list[int] = []

    def like_a_small_gpu(module: Any, inputs: Any, keywords: Any) -> None:
        if len(keywords["input_ids"]) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(keywords["input_ids"]))

    resident.model.module.register_forward_pre_hook(like_a_small_gpu, with_kwargs=True)
    if fits == 0:
        with pytest.raises(torch.OutOfMemoryError):
            evaluate(resident, params, 0, 1)
        return
    found = evaluate(resident, params, 0, 1)
    assert [batch.batch for batch in found] == [batch.batch for batch in expected] == [0, 1, 2]
    for batch, whole in zip(found, expected, strict=True):
        assert batch.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
        assert np.array_equal(batch.confusion, whole.confusion)
    # 23 texts in batches of 10, 10 and 3; once a part fits, later parts stay as small.
    assert sizes == {5: [5, 5, 5, 5, 3], 2: [2] * 5 + [2] * 5 + [2, 1], 1: [1] * 23}[fits]


@pytest.mark.parametrize("where", ["the loss", "what is done with the logits"])
def test_a_batch_whose_loss_exceeds_memory_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    resident = builders.resident(tmp_path, Config(val_batch_size=10), builders.bert())
    params = resident.model.flat.clone()
    expected = evaluate(resident, params, 0, 1)

    def large(logits: torch.Tensor, *args: Any, **keywords: Any) -> Any:
        if len(logits) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.nn.functional.cross_entropy(logits, *args, **keywords)

    seen: list[int] = []

    def look(rows: Any, logits: torch.Tensor) -> None:
        large(logits, torch.zeros(len(logits), dtype=torch.int64))
        seen.extend(rows.tolist())

    if where == "the loss":
        monkeypatch.setattr(evaluation, "cross_entropy", large)
    found = evaluate(resident, params, 0, 1, on_logits=look)
    assert sorted(seen) == list(range(23)), "each once"
    for batch, whole in zip(found, expected, strict=True):
        assert batch.loss_sum == pytest.approx(whole.loss_sum, rel=1e-5)
        assert np.array_equal(batch.confusion, whole.confusion)


@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_each_test_example_is_evaluated_once_by_any_number_of_workers(tmp_path: Path, num_workers: int) -> None:
    config = Config(val_batch_size=4)  # 23 examples: five full batches and one of three
    resident = builders.resident(tmp_path, config, builders.bert())
    params = resident.model.flat.clone()

    parts = [evaluate(resident, params, worker, num_workers) for worker in reversed(range(num_workers))]
    result = metrics.validation(batch for part in parts for batch in part)

    resident.model.module.eval()
    losses, confusion = [], np.zeros((3, 3), np.int64)
    with torch.inference_mode():
        for index in range(23):
            batch = resident.test.batch(np.array([index]))
            logits = resident.model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            losses.append(cross_entropy(logits, batch.labels).item())
            confusion[batch.labels.item(), logits.argmax().item()] += 1
    assert result["validation.examples"] == 23
    assert result["validation.loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result["validation.accuracy"] == pytest.approx(np.trace(confusion) / 23)
    pooled = sum(part.confusion for part in evaluate(resident, params, 0, 1))
    assert pooled.tolist() == confusion.tolist(), "rows are true labels, columns predictions"
    assert not np.array_equal(confusion, confusion.T)
    one_worker = metrics.validation(evaluate(resident, params, 0, 1))
    assert result == one_worker, "bitwise: sums run in batch order"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_evaluation_batch_counts_as_progress(tmp_path: Path, num_workers: int) -> None:
    """23 texts in batches of 5: five batches, of which the first of two workers has three."""
    resident = builders.resident(tmp_path, Config(val_batch_size=5), builders.bert())
    steps: list[int] = []
    resident = dataclasses.replace(resident, on_step=lambda: steps.append(1))
    assert [batch.batch for batch in evaluate(resident, resident.model.flat.clone(), 0, num_workers)] == list(
        range(0, 5, num_workers)
    )
    assert len(steps) == {1: 5, 2: 3}[num_workers]


def test_the_given_parameters_are_evaluated_and_not_those_that_the_model_holds(resident: Resident) -> None:
    """After local training the model's buffer holds a site's delta."""
    params = resident.model.flat.clone()
    expected = [batch.loss_sum for batch in evaluate(resident, params, 0, 1)]
    resident.model.flat.fill_(0.5)
    assert [batch.loss_sum for batch in evaluate(resident, params, 0, 1)] == expected
    assert [batch.loss_sum for batch in evaluate(resident, params * 2, 0, 1)] != expected


def test_the_model_gets_the_types_of_a_pairs_texts(tmp_path: Path) -> None:
    texts, labels = builders.texts_and_labels(12, 3)
    token_store.write(tmp_path / "pairs", builders.tokenizer(), texts, labels, 32, [*reversed(texts)], token_types=True)
    resident = builders.resident(tmp_path, Config(), builders.bert())
    store = token_store.TokenStore(tmp_path / "pairs", pad_token_id=0)
    batch = store.batch(np.arange(12))
    assert batch.token_type_ids is not None
    module = resident.model.module.eval()
    with torch.inference_mode():
        found = resident.logits(batch)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        assert torch.equal(found, module(**inputs, token_type_ids=batch.token_type_ids).logits)
        assert not torch.allclose(found, module(**inputs).logits, atol=1e-3)
