"""Which token embeddings can leave rows out: those that a model uses at the tokens alone, once."""

from typing import Any

import pytest
import torch

from scaling_fl.models import token_table
from tests.models import architectures

IDS = torch.tensor([[1, 2, 2], [3, 0, 1]])


class Model(torch.nn.Module):
    """A model of one's own, which looks up tokens as `how` says."""

    def __init__(self, how: str, **options: Any):
        super().__init__()
        self.how, self.dropout = how, torch.nn.Dropout(0.5)
        self.tokens = (Scaled if how == "subclass" else torch.nn.Embedding)(5, 4, **options)
        self.head = torch.nn.Linear(4, 5, bias=False)
        if how == "tied":
            self.head.weight = self.tokens.weight
        if how == "shared module":
            self.other = self.tokens
        if how == "frozen":
            self.tokens.requires_grad_(False)

    def get_input_embeddings(self) -> torch.nn.Module:
        if self.how == "unnamed":
            raise NotImplementedError
        return self.head if self.how == "no table" else self.tokens

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.how == "shifted":
            ids = ids.roll(1)
        if self.how == "by name":
            return self.head(self.tokens(input=ids))
        found = self.dropout(self.tokens(ids))
        if self.how == "noisy":
            found = found + torch.rand_like(found)
        if self.how == "twice":
            found = found + self.tokens(ids)
        if self.how == "as a matrix":
            return found @ self.tokens.weight.T
        if self.how == "unused":
            found = found.detach()
        if self.how == "in place":
            found = found + torch.nn.functional.normalize(self.tokens.weight)[ids]
        return self.head(found)


class Scaled(torch.nn.Embedding):
    pass


def find(model: Model) -> tuple[str, torch.nn.Embedding] | None:
    return token_table.find(model, IDS, lambda: model(IDS))


@pytest.mark.parametrize("how", ["", "noisy"])
def test_a_table_that_is_used_once_is_found_and_nothing_of_the_model_changes(how: str) -> None:
    model = Model(how)
    state = torch.get_rng_state()
    assert find(model) == ("tokens.weight", model.tokens)
    assert model.training, "as it was"
    assert not model.tokens.sparse
    assert torch.equal(torch.get_rng_state(), state), "sites draw the same, whichever of them is a worker's first"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.tokens._forward_pre_hooks


@pytest.mark.parametrize(
    "how",
    [
        "tied", "shared module", "frozen", "unnamed", "no table", "subclass", "shifted", "by name", "twice", "as a matrix",
        "unused", "in place",
    ],
)  # fmt: skip
def test_a_table_that_is_used_otherwise_is_left_whole(how: str) -> None:
    model = Model(how).eval()
    assert find(model) is None
    assert not model.training
    assert not model.tokens.sparse
    assert not model.tokens._forward_pre_hooks


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_a_table_with_rules_of_its_own_is_left_whole(options: dict[str, Any]) -> None:
    model = Model("", **options)
    assert find(model) is None
    assert model.tokens.sparse == ("sparse" in options)


def test_a_model_that_has_no_tokens_has_no_table() -> None:
    model = torch.nn.Linear(3, 2)
    assert token_table.find(model, IDS, lambda: model(torch.ones(3))) is None


@pytest.mark.parametrize(("kind", "name"), [("bert", "bert.embeddings.word_embeddings.weight"), ("t5", None)])
def test_tables_of_known_models(kind: str, name: str | None) -> None:
    model = architectures.build(kind)
    ids = torch.tensor([[model.config.eos_token_id or 1]])
    found = token_table.find(model, ids, lambda: model(input_ids=ids).logits)
    assert (found and found[0]) == name
