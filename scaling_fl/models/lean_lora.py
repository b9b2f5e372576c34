"""Layers with adapters that make fewer passes over memory than peft's: y = W x + B (s A x).

peft scales and adds B A x, which has as many values as y, in passes of their own, forward and backward. Here s scales A x,
which has as many values as the rank, and the product with B adds to W x: the same up to rounding.
"""

from typing import Any

import torch

from scaling_fl.models import peft_alone  # noqa: F401  # isort: skip  # first
from peft.tuners import lora


class Linear(lora.Linear):
    """peft's layer with another forward pass."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """x (…, in) to y (…, out)."""
        if args or kwargs or self.disable_adapters or self.merged or self.lora_variant:
            return super().forward(x, *args, **kwargs)
        found: torch.Tensor = self.base_layer(x)
        rows = found.flatten(0, -2)
        for name in self.active_adapters:
            low = self.lora_A[name](self.lora_dropout[name](x)) * self.scaling[name]
            rows = torch.addmm(rows, low.flatten(0, -2), self.lora_B[name].weight.t())
        return rows.view(found.shape).to(found.dtype)


def use(layer: Any) -> None:
    """Make peft's `layer` one of these, if it is linear."""
    if type(layer) is lora.Linear and isinstance(layer.base_layer, torch.nn.Linear):
        layer.__class__ = Linear
