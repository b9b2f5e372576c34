"""A site's optimiser: one fused kernel over flat tensors, and the state that a site may keep between rounds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import algorithms
from scaling_fl.models.flat_parameters import FlatModel, Layout

# All are elementwise: a step over one flat tensor equals a step over each of its parts.
TORCH_OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
    "adagrad": (torch.optim.Adagrad, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"foreach": True}),
}

# State tensors per parameter segment, besides the step count; initially zero.
_STATE = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": (),
    "adagrad": ("sum",),
    "rmsprop": ("square_avg",),
}


def local_optimiser(config: Config, model: FlatModel) -> torch.optim.Optimizer:
    """Return a fresh optimiser over two flat tensors: parameters with weight decay, and those without."""
    groups = []
    for start, stop, decay in _segments(config, model.layout):
        segment = torch.nn.Parameter(model.flat[start:stop])
        segment.grad = model.gradient[start:stop]
        groups.append({"params": [segment], "weight_decay": decay})
    kind, options = TORCH_OPTIMISERS[config.optimiser]
    return kind(groups, lr=config.learning_rate, **options)


def state_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimiser's state tensors by name, `optimiser.<group>.<key>`."""
    states = [optimiser.state[group["params"][0]] for group in optimiser.param_groups]
    return {f"optimiser.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}


def load_state(optimiser: torch.optim.Optimizer, kept: Mapping[str, torch.Tensor], config: Config) -> None:
    """Restore the state that `state_tensors` returned."""
    for name, value in kept.items():
        if not name.startswith("optimiser."):
            continue
        _, number, key = name.split(".")
        (segment,) = optimiser.param_groups[int(number)]["params"]
        on_cpu = key == "step" and config.optimiser in ("adagrad", "rmsprop")
        optimiser.state[segment][key] = value if on_cpu else value.to(segment.device)


def _segments(config: Config, layout: Layout) -> list[tuple[int, int, float]]:
    """Return start, stop and weight decay of the non-empty segments of the flat buffer that the optimiser updates."""
    segments = [(0, layout.decayed, config.weight_decay), (layout.decayed, layout.trained, 0.0)]
    return [(start, stop, decay) for start, stop, decay in segments if start < stop]


def site_state_template(config: Config, layout: Layout) -> dict[str, npt.NDArray[np.float32]]:
    """Return a site's state tensors by name, as zeros of the right shapes; broadcast, so they take no memory."""
    sizes = algorithms.site_state(config, layout) | ({} if config.aggregates else {"params": layout.size})
    kept = {name: np.broadcast_to(np.float32(0), (size,)) for name, size in sizes.items()}
    if not config.keep_optimiser:
        return kept
    for number, (start, stop, _) in enumerate(_segments(config, layout)):
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_STATE[config.optimiser], (stop - start,))
        for key, shape in (shapes | {"step": ()} if shapes else shapes).items():
            kept[f"optimiser.{number}.{key}"] = np.broadcast_to(np.float32(0), shape)
    return kept
