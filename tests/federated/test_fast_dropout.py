"""Dropout by the C function: the draws of PyTorch's own, number by number, and the same state of the generator."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl import c_library
from scaling_fl.config.schema import Config
from scaling_fl.federated import fast_dropout
from scaling_fl.federated.site import Site
from tests import builders

SIZES = (
    0,
    1,
    2,
    3,
    100,
    311,
    312,
    313,
    623,
    624,
    625,
    5000,
)  # a block of the generator is 624 words, two for each draw
SHARES = (0.0, 2.0**-54, 0.1, 1 / 3, 0.5, 0.9, 1 - 2.0**-53, 1.0)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    while fast_dropout._kept:
        fast_dropout._kept.pop()._destroy()
    fast_dropout._library.cache_clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of values of each call of the C function, which is enabled."""
    fast_dropout.enable()
    calls, draw = list[int](), fast_dropout.draw

    def drawn(values: torch.Tensor, *given: Any) -> None:
        calls.append(values.numel())
        draw(values, *given)

    monkeypatch.setattr(fast_dropout, "draw", drawn)
    return calls


def by_pytorch(values: torch.Tensor, p: float, generator: torch.Generator) -> None:
    values.bernoulli_(p, generator=generator)


def stream(seed: int, draw: Callable[[torch.Tensor, float, torch.Generator], None]) -> list[torch.Tensor]:
    """Draws of several kinds in turn, and the state that they leave."""
    rng, generator, found = random.Random(seed), torch.Generator().manual_seed(seed), list[torch.Tensor]()
    for _ in range(8):
        kind, size = rng.choice(("dropout", "dropout", "uniform", "normal", "whole")), rng.choice(SIZES)
        values = torch.empty(size)
        if kind == "dropout":
            draw(values, rng.choice(SHARES), generator)
        elif kind == "uniform":
            values.uniform_(generator=generator)
        elif kind == "normal":
            values.normal_(generator=generator)
        else:
            values.random_(10, generator=generator)
        found.append(values)
    return [*found, generator.get_state()]


def test_the_draws_and_the_state_after_them_are_those_of_pytorch() -> None:
    for seed in range(300):
        mine, expected = stream(seed, fast_dropout.draw), stream(seed, by_pytorch)
        assert all(map(torch.equal, mine, expected)), seed


def layers(seed: int) -> list[torch.Tensor]:
    """Outputs and gradients of a dropout layer and of attention, and the state of the generator."""
    torch.manual_seed(seed)
    values = torch.randn(2, 3, 17, 16, requires_grad=True)
    dropped = torch.nn.Dropout(0.1)(values)
    attended = torch.nn.functional.scaled_dot_product_attention(dropped, values, values, dropout_p=0.2)
    (gradient,) = torch.autograd.grad(attended.square().sum(), values)
    return [dropped.detach(), attended.detach(), gradient, torch.get_rng_state()]


def test_layers_draw_by_it_and_compute_the_same(counted: list[int]) -> None:
    found = layers(1)
    assert counted == [2 * 3 * 17 * 16, 2 * 3 * 17 * 17]
    while fast_dropout._kept:
        fast_dropout._kept.pop()._destroy()
    assert all(map(torch.equal, found, layers(1)))
    assert len(counted) == 2, "PyTorch's own again"


def test_a_site_trains_to_the_same_bits(tmp_path: Path, counted: list[int]) -> None:
    config = Config(batch_size=7, learning_rate=1e-2)

    def trained() -> torch.Tensor:
        resident = builders.resident(tmp_path, config, builders.bert(dropout=0.1))
        return Site(2, np.arange(20), resident).train(resident.model.flat.clone(), 3)[0].clone()

    found = trained()
    calls = len(counted)
    fast_dropout._kept.pop()._destroy()
    assert torch.equal(found, trained())
    assert calls > 3
    assert len(counted) == calls


@pytest.mark.parametrize(
    "values",
    [torch.empty(40, dtype=torch.float64), torch.empty(40, dtype=torch.bfloat16), torch.empty(8, 5).T, torch.empty(40).bool()],
    ids=["double", "bfloat16", "transposed", "bool"],
)  # fmt: skip
def test_what_it_does_not_draw_is_drawn_by_pytorch(values: torch.Tensor, counted: list[int]) -> None:
    generator, same = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    found = values.clone().bernoulli_(0.3, generator=generator)
    assert not counted
    fast_dropout._kept.pop()._destroy()
    assert torch.equal(found, values.clone().bernoulli_(0.3, generator=same))


def test_a_share_that_is_none_is_refused_as_before(counted: list[int]) -> None:
    with pytest.raises(RuntimeError, match="bernoulli_ expects p to be in"):
        torch.empty(3).bernoulli_(1.5)
    assert not counted


def test_a_generator_of_ones_own_is_drawn_from(counted: list[int]) -> None:
    before = torch.get_rng_state()
    torch.empty(50).bernoulli_(0.5, generator=torch.Generator().manual_seed(1))
    assert counted == [50]
    assert torch.equal(torch.get_rng_state(), before)


def test_it_is_enabled_once(counted: list[int]) -> None:
    fast_dropout.enable()
    assert len(fast_dropout._kept) == 1


@pytest.mark.parametrize("why", ["no compiler", "other draws", "another state"])
def test_pytorch_goes_on_where_the_function_is_missing_or_draws_otherwise(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = fast_dropout.draw

    def wrong(values: torch.Tensor, p: float, generator: torch.Generator) -> None:
        draw(values, p, generator)
        if why == "other draws":
            values[-1] = 1 - values[-1]
        else:
            torch.rand(1, generator=generator)

    if why == "no compiler":
        source = tmp_path / "bernoulli.c"
        source.write_text(fast_dropout._SOURCE.read_text())
        monkeypatch.setattr(fast_dropout, "_SOURCE", source)
        monkeypatch.setattr(c_library.shutil, "which", lambda name: None)
    else:
        monkeypatch.setattr(fast_dropout, "draw", wrong)
    fast_dropout.enable()
    assert not fast_dropout._kept
    torch.empty(3).bernoulli_(0.5)
