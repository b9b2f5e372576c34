"""The server's state: parameters, moments and round, in the flat buffer and by tensor name."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.data.examples import Predictions
from scaling_fl.federated import site_state
from scaling_fl.models.flat_parameters import FlatModel, Layout

# Prefixes of tensor names in checkpoints.
_MOMENT = "server_moment_{}."
_EXTRA = "server_extra."


@dataclass
class ServerState:
    """The server's part of a checkpoint."""

    row: torch.Tensor  # (size + extra,) float32: the parameters (models/flat_parameters.py), then what methods add
    trained: int  # row[:trained] are trained parameters; the rest is averaged, never optimised
    round: int  # the last complete round; 0 before training
    moments: torch.Tensor | None = None  # (n, size + extra) of the server optimiser
    size: int | None = None  # of the parameters, if the row holds more
    partly_updated: bool = False  # a server step is under way, or failed: don't checkpoint
    results: dict[str, Any] = field(default_factory=dict)  # of `round`, without its evaluation
    # Of the last evaluation, by set; without a global model the sum over the sites' own.
    confusion: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    predictions: Predictions | None = None  # for the test set, by the global model of the last round
    generations: list[dict[str, Any]] = field(default_factory=list)  # of the last round's: see generation.py
    # Held during the server step and the report of a round: only its holder sees the parameters of one whole round.
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def params(self) -> torch.Tensor:
        """The model's parameters (size,)."""
        return self.row[: self.size]

    @property
    def extra(self) -> torch.Tensor:
        """What methods keep beside the parameters: see `algorithms.extra_size`."""
        return self.row[len(self.params) :]

    def scaled(self, delta: torch.Tensor, scale: float, chunk: slice) -> torch.Tensor:
        """`delta`, of the slice `chunk`, with the part of trained parameters multiplied by `scale`, in place."""
        if scale != 1:
            delta[: max(0, self.trained - chunk.start)].mul_(scale)
        return delta

    def slices(self, chunk: slice) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Return views within `chunk`: trained parameters, averaged-only values, and the moments of the trained ones."""
        values = self.row[chunk]
        trained = max(0, min(self.trained - chunk.start, len(values)))
        moments = [] if self.moments is None else [moment[chunk][:trained] for moment in self.moments]
        return values[:trained], values[trained:], moments


def state_arrays(model: FlatModel, block: torch.Tensor) -> dict[str, npt.NDArray[np.generic]]:
    """Return the server's state by tensor name, from `block` (1 + moments, size + extra) on the CPU, parameters first."""
    size = model.layout.size
    tensors = model.arrays(block[0][:size])
    tensors |= {_EXTRA + name: view.numpy() for name, view in _extra_views(model.layout, block[0][size:]).items()}
    for number, moment in enumerate(block[1:]):
        views = model.layout.views(moment[:size]).items()
        tensors |= {_MOMENT.format(number) + name: view.numpy() for name, view in views}
    return tensors


def fill_state(model: FlatModel, block: torch.Tensor, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Inverse of `state_arrays`: write `tensors` into `block` and the model's integer buffers."""
    size = model.layout.size
    model.fill(block[0][:size], parameters(tensors))
    for name, view in _extra_views(model.layout, block[0][size:]).items():
        view.copy_(torch.from_numpy(tensors[_EXTRA + name]))
    for number, moment in enumerate(block[1:]):
        for name, view in model.layout.views(moment[:size]).items():
            view.copy_(torch.from_numpy(tensors[_MOMENT.format(number) + name]))


def parameters(tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return the model's tensors out of those of a checkpoint."""
    others = ("server_moment_", _EXTRA, site_state.PREFIX)
    return {name: tensors[name] for name in tensors if not name.startswith(others)}


def initial_moments(values: Sequence[float], params: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return moments that start at `values`, for the float tensors `params`, by tensor name."""
    return {
        _MOMENT.format(number) + name: np.full_like(array, value)
        for number, value in enumerate(values)
        for name, array in params.items()
    }


def initial_extra(layout: Layout, size: int) -> dict[str, npt.NDArray[Any]]:
    """Return the first `size` values that methods keep beside the parameters: zeros, by tensor name."""
    return {_EXTRA + name: view.numpy() for name, view in _extra_views(layout, torch.zeros(size)).items()}


def _extra_views(layout: Layout, extra: torch.Tensor) -> dict[str, torch.Tensor]:
    """By name of the parameters if there is a value for each of these; otherwise as one tensor."""
    if len(extra) in (0, layout.trained):
        return layout.views(extra)
    return {"values": extra}
