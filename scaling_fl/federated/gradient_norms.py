"""Norms of the global model's gradient by layer, on a fixed batch: where training reaches, and where it doesn't."""

import re
from collections import defaultdict

import torch

from scaling_fl import seeding
from scaling_fl.federated.full_gradient import full_gradient
from scaling_fl.federated.resident import Resident
from scaling_fl.models.new_parameters import ALL

_EXAMPLES = 64
_LAYER = re.compile(r"(.*?\.\d+)\.")  # up to the number of a layer, such as bert.encoder.layer.0


def gradient_norms(resident: Resident, params: torch.Tensor) -> dict[str, float]:
    """Euclidean norms of the gradient of the mean cross-entropy at `params` (size,), without dropout, as metrics.

    `gradient_norm.LAYER`, `gradient_norm.pretrained` and `gradient_norm.head`: the parameters that the pre-trained
    weights have, and those that they lack. The batch is drawn from all training examples by the seed.
    """
    model, config, count = resident.model, resident.config, len(resident.train)
    rows = seeding.generator(config.seed, "probe").permutation(count)[:_EXAMPLES]
    model.load(params)
    gradient = full_gradient(resident, rows)
    squares: dict[str, float] = defaultdict(float)
    new = set(resident.new_parameters)
    for name, view in model.layout.views(gradient).items():
        square = float(view.double().pow(2).sum())
        squares[layer_of(name)] += square
        squares["head" if name in new or ALL in new else "pretrained"] += square
    return {f"gradient_norm.{name}": square**0.5 for name, square in squares.items()}


def layer_of(name: str) -> str:
    """The layer of a parameter: up to its number, or else without the parameter's own name."""
    numbered = _LAYER.match(name)
    if numbered:
        return numbered[1]
    owner = name.rpartition(".")[0]
    return ".".join(owner.split(".")[:2])
