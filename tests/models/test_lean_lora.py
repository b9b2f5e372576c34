"""The lean forward pass against peft's own."""

import copy
from typing import Any

import pytest
import torch
from peft.tuners import lora

from scaling_fl.config.schema import Config
from scaling_fl.models import adapters, base, lean_lora
from tests import builders


def layers(module: Any) -> list[Any]:
    return [layer for _, layer in adapters._layers(module)]


def as_in_peft(module: Any) -> Any:
    plain = copy.deepcopy(module)
    for layer in layers(plain):
        layer.__class__ = lora.Linear
    return plain


@pytest.mark.parametrize("build", [builders.bert, builders.decoder])
@pytest.mark.parametrize(
    ("more", "dtype"),
    [({}, None), ({"lora_aggregation": "exact"}, None), ({"lora_dropout": 0.3}, None), ({}, torch.bfloat16)],
)
def test_logits_and_gradients_are_those_of_peft(build: Any, more: dict[str, Any], dtype: torch.dtype | None) -> None:
    module = build().train()
    base.freeze(module, Config(trainable="lora", lora_rank=3, lora_alpha=5.0, **more))
    assert layers(module)
    assert all(type(layer) is lean_lora.Linear for layer in layers(module))
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():  # B and the delta are 0 at the start
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    ids = torch.arange(14).view(2, 7)
    results = []
    for model in (module, as_in_peft(module)):
        torch.manual_seed(5)  # of dropout
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(input_ids=ids).logits
        logits.float().square().mean().backward()
        results.append([logits, *(p.grad for _, p in sorted(model.named_parameters()) if p.requires_grad)])
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype is None else {"rtol": 0.1, "atol": 0.05}
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def test_merged_and_disabled_adapters_are_left_to_peft() -> None:
    module = builders.bert(dropout=0.0).eval()
    base.freeze(module, Config(trainable="lora", lora_rank=3))
    for name, parameter in module.named_parameters():
        if adapters.MATRIX_B in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    ids = torch.arange(14).view(2, 7)
    with torch.inference_mode():
        adapted = module(input_ids=ids).logits
        for layer in layers(module):
            layer.enable_adapters(False)
        assert torch.equal(module(input_ids=ids).logits, builders.bert(dropout=0.0).eval()(input_ids=ids).logits)
        for layer in layers(module):
            layer.enable_adapters(True)
            layer.merge()
        torch.testing.assert_close(module(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapted, builders.bert(dropout=0.0).eval()(input_ids=ids).logits)
