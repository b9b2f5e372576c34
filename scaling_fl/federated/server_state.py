"""The server's state: parameters, moments and round, in memory and by tensor name."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.federated import site_state
from scaling_fl.models.flat_parameters import FlatModel

_MOMENT = "server_moment_{}."  # before a tensor's name in a checkpoint


@dataclass
class ServerState:
    """All that a checkpoint needs."""

    params: torch.Tensor  # (size,) float32, laid out as flat.py says
    trained: int  # params[:trained] are trained; what follows is averaged and never optimised
    round: int  # the last round that is complete; 0 before any training
    moments: torch.Tensor | None = None  # (n, size), of the optimiser; zero before the first round
    partly_updated: bool = False  # whether a part of `params` is a round ahead
    results: dict[str, Any] = field(default_factory=dict)  # what is known of that round, before it is evaluated
    # Held while a round becomes complete, and while it is reported: without it, `params` are those of a round half done.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slices(self, part: slice) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Within `part`: the trained parameters, those that are only averaged, and the trained ones' moments."""
        params = self.params[part]
        trained = max(0, min(self.trained - part.start, len(params)))
        moments = [] if self.moments is None else [moment[part][:trained] for moment in self.moments]
        return params[:trained], params[trained:], moments


def state_arrays(model: FlatModel, block: torch.Tensor) -> dict[str, npt.NDArray[np.generic]]:
    """The server's state by tensor name: `block` (1 + moments, size) on the CPU, parameters first."""
    tensors = model.arrays(block[0])
    for number, moment in enumerate(block[1:]):
        views = model.layout.views(moment).items()
        tensors |= {_MOMENT.format(number) + name: view.numpy() for name, view in views}
    return tensors


def fill_state(model: FlatModel, block: torch.Tensor, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a state, as `state_arrays` gives it, into `block`, and the model's integer buffers."""
    others = ("server_moment_", site_state.PREFIX)
    model.fill(block[0], {name: tensors[name] for name in tensors if not name.startswith(others)})
    for number, moment in enumerate(block[1:]):
        for name, view in model.layout.views(moment).items():
            view.copy_(torch.from_numpy(tensors[_MOMENT.format(number) + name]))


def initial_moments(num_moments: int, params: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Moments before the first round, by tensor name, for these float tensors."""
    return {
        _MOMENT.format(number) + name: np.zeros_like(array)
        for number in range(num_moments)
        for name, array in params.items()
    }
