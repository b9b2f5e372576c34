"""Steps of the token embeddings' touched rows: they give what steps over the whole table give, where it is used once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.config.sections.training import OPTIMISERS
from scaling_fl.federated import step_in_backward, touched_rows
from scaling_fl.federated.local_optimiser import local_optimiser
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from tests import builders
from tests.models import architectures

# Their encoder and decoder share the embeddings.
SHARED = {"bart", "t5"}
# As `loading.load_model` sets it: the library would replace layers, and draw numbers for them, at the first short batch.
CHANGES = {"big_bird": {"attention_type": "original_full"}}
USUAL = ("albert", "bart", "distilbert", "gpt2", "t5")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each step of touched rows had the gradient of tokens alone. Tables of few rows take such steps as well."""
    found, step = list[bool](), touched_rows.TouchedRows.__call__

    def counted(rows: touched_rows.TouchedRows, gradient: torch.Tensor) -> None:
        found.append(gradient.is_sparse)
        step(rows, gradient)

    monkeypatch.setattr(touched_rows.TouchedRows, "__call__", counted)
    monkeypatch.setattr(touched_rows, "SHARE", 1.0)
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 0)
    return found


def assert_equal(folder: Path, monkeypatch: pytest.MonkeyPatch, config: Config, kind: str) -> None:
    """The delta of a site, and its loss, are those of steps over the flat buffer."""

    def trained() -> tuple[torch.Tensor, float]:
        resident = builders.resident(folder, config, architectures.build(kind, **CHANGES.get(kind, {})))
        delta, metrics = Site(2, np.arange(20), resident).train(resident.model.flat.clone(), 3)
        return delta.clone(), metrics.loss

    found, loss = trained()
    monkeypatch.setattr(step_in_backward, "MIN_SIZE", 10**9)
    expected, expected_loss = trained()
    assert torch.equal(found, expected)
    assert loss == expected_loss


@pytest.mark.parametrize("kind", architectures.cases(*USUAL))
def test_an_architecture_takes_the_steps_of_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[bool], kind: str
) -> None:
    config = Config(batch_size=13, learning_rate=1e-2, num_local_epochs=2)
    assert_equal(tmp_path, monkeypatch, config, kind)
    if kind in USUAL:
        assert calls == [True] * (4 * (kind not in SHARED))


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_an_optimiser_takes_the_steps_of_the_whole_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[bool], optimiser: str
) -> None:
    """Rows that a step doesn't touch still move by the moments that earlier steps have left."""
    config = Config(batch_size=3, optimiser=optimiser, learning_rate=1e-2, num_rounds=6, lr_schedule="cosine")
    assert_equal(tmp_path, monkeypatch, config, "bert")
    assert calls == [True] * 7


def test_a_token_that_no_text_has_keeps_its_row(tmp_path: Path, calls: list[bool]) -> None:
    module = builders.bert()
    resident = builders.resident(tmp_path, Config(batch_size=2, learning_rate=0.1), module)
    table = module.get_input_embeddings().weight
    before, shard = table.detach().clone(), np.array([0, 1, 2])
    Site(0, shard, resident).train(resident.model.flat.clone(), 1, leave_params=True)
    moved = (table.detach() != before).any(1).nonzero().flatten().tolist()
    tokens = {token for row in shard for token in resident.train.tokens[slice(*resident.train.offsets[row : row + 2])]}
    assert calls == [True, True]
    assert moved == sorted(tokens - {resident.train.pad_token_id})
    assert len(moved) < len(table) - 1


def taken(resident: Resident, **keys: Any) -> bool:
    """Whether a step takes touched rows of the resident model."""
    config = Config(**keys)
    changed = dataclasses.replace(resident, config=config)
    steps = step_in_backward.take_over(changed, local_optimiser(config, resident.model), [], [np.arange(3)])
    return any(isinstance(step, touched_rows.TouchedRows) for step in steps.values())


def test_weight_decay_reaches_all_rows(resident: Resident, calls: list[bool]) -> None:
    assert taken(resident)
    assert not taken(resident, weight_decay=0.1)
    assert not taken(resident, compile=True)


def test_texts_that_reach_most_rows_take_steps_of_the_whole_table(
    resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = resident.model.module.get_input_embeddings()
    for examples in ([], [[0]], [[0, 3], [3, 1]], [np.arange(40)]):
        batches = [np.array(batch) for batch in examples]
        shown = torch.cat([torch.empty(0), *(resident.train.batch(batch).input_ids.flatten() for batch in batches)])
        expected = sorted({*map(int, shown), resident.train.pad_token_id})
        for share, given in ((1.0, expected), (len(expected) / len(table.weight), expected), (0.01, None)):
            monkeypatch.setattr(touched_rows, "SHARE", share)
            found = touched_rows.ids(table, resident.train, batches)
            assert (None if found is None else found.tolist()) == given
    table.embedding_dim = 20
    monkeypatch.setattr(touched_rows, "SHARE", 1.0)
    assert touched_rows.ids(table, resident.train, batches) is None, "a kernel rounds the last values otherwise"


def test_a_table_that_no_pass_has_reached_takes_a_step_along_0_and_another_gradient_is_no_step() -> None:
    table = torch.nn.Embedding(6, 16)
    before = table.weight.detach().clone()
    rows = touched_rows.TouchedRows(table, torch.tensor([1, 4]), lambda rows: torch.optim.SGD([rows], lr=1.0))
    rows(torch.zeros(6, 16))
    assert torch.equal(table.weight, before)
    with pytest.raises(AssertionError, match="another gradient"):
        rows(torch.ones(6, 16))
    for token, refused in ((4, False), (2, True)):
        with rows.sparse():
            (gradient,) = torch.autograd.grad(table(torch.tensor([token, token])).sum(), table.weight)
        if refused:
            with pytest.raises(AssertionError, match="no text has"):
                rows(gradient)
        else:
            rows(gradient)
    assert not table.sparse
    before[4] -= 2
    assert torch.equal(table.weight, before)
