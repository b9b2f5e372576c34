"""The optimiser of a site: one kernel over flat tensors, and the state that a site may keep."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.config.schema import Config
from scaling_fl.models.flat_parameters import FlatModel, Layout

# Every one works elementwise, so that it is the same over one flat tensor as over many.
OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
    "adagrad": (torch.optim.Adagrad, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"foreach": True}),
}


# What they keep of each segment of parameters, beside the number of steps; all of it zero at first.
_STATE = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": (),
    "adagrad": ("sum",),
    "rmsprop": ("square_avg",),
}


def local_optimiser(config: Config, model: FlatModel) -> torch.optim.Optimizer:
    """A fresh optimiser over two flat tensors: what weight decay applies to, and what it spares."""
    groups = []
    for start, stop, decay in _segments(config, model.layout):
        segment = torch.nn.Parameter(model.flat[start:stop])
        segment.grad = model.gradient[start:stop]
        groups.append({"params": [segment], "weight_decay": decay})
    kind, options = OPTIMISERS[config.optimiser]
    return kind(groups, lr=config.learning_rate, **options)


def state_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state, by name."""
    states = [optimiser.state[group["params"][0]] for group in optimiser.param_groups]
    return {f"optimiser.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}


def load_state(optimiser: torch.optim.Optimizer, kept: Mapping[str, torch.Tensor], config: Config) -> None:
    """Give an optimiser the state that `state_tensors` gave."""
    for name, value in kept.items():
        _, number, key = name.split(".")
        (segment,) = optimiser.param_groups[int(number)]["params"]
        on_cpu = key == "step" and config.optimiser in ("adagrad", "rmsprop")
        optimiser.state[segment][key] = value if on_cpu else value.to(segment.device)


def _segments(config: Config, layout: Layout) -> list[tuple[int, int, float]]:
    """Start, stop and weight decay of the parts of the flat buffer that an optimiser steps."""
    segments = [(0, layout.decayed, config.weight_decay), (layout.decayed, layout.trained, 0.0)]
    return [(start, stop, decay) for start, stop, decay in segments if start < stop]


def initial_site_state(config: Config, layout: Layout) -> dict[str, npt.NDArray[np.float32]]:
    """What a site keeps, by name, with zeros in the place of values; they take no memory."""
    kept = {} if config.has_global_model else {"params": np.broadcast_to(np.float32(0), (layout.size,))}
    if not config.keep_optimiser:
        return kept
    for number, (start, stop, _) in enumerate(_segments(config, layout)):
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_STATE[config.optimiser], (stop - start,))
        for key, shape in (shapes | {"step": ()} if shapes else shapes).items():
            kept[f"optimiser.{number}.{key}"] = np.broadcast_to(np.float32(0), shape)
    return kept
