"""The server's side of a round: its state, and the optimiser that applies the aggregated delta to it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import site_state
from scaling_fl.models.flat_parameters import FlatModel

_SECOND_DECAY, _EPSILON = 0.99, 1e-3  # beta_2 and tau of Reddi et al. 2021
_MOMENT = "server_moment_{}."  # before a tensor's name in a checkpoint


@dataclass
class ServerState:
    """All that a checkpoint needs."""

    params: torch.Tensor  # (size,) float32, laid out as flat.py says
    trained: int  # params[:trained] are trained; what follows is averaged and never optimised
    round: int  # the last round that is complete; 0 before any training
    moments: torch.Tensor | None = None  # (n, size), of the optimiser; zero before the first round
    torn: bool = False  # whether a part of `params` is a round ahead
    results: dict[str, Any] = field(default_factory=dict)  # what is known of that round, before it is evaluated
    # Held while a round becomes complete, and while it is reported: without it, `params` are those of a round half done.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def slices(self, part: slice) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Within `part`: the trained parameters, those that are only averaged, and the trained ones' moments."""
        params = self.params[part]
        trained = max(0, min(self.trained - part.start, len(params)))
        moments = [] if self.moments is None else [moment[part][:trained] for moment in self.moments]
        return params[:trained], params[trained:], moments


@dataclass(frozen=True)
class SGD:
    """params ← params − learning_rate × v, where v ← momentum × v + delta.

    With learning_rate = 1 and no momentum this is FedAvg (McMahan et al. 2017): since delta = params − site's
    parameters, the result is the weighted mean of the sites' parameters. With momentum: FedAvgM (Hsu et al. 2019).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    @property
    def num_moments(self) -> int:
        return int(self.momentum > 0)

    def step(self, state: ServerState, delta: torch.Tensor, part: slice) -> None:
        """Apply `delta`, which is the `part` of the aggregated delta that this worker holds, in place."""
        trained, averaged, moments = state.slices(part)
        averaged.sub_(delta[len(trained) :])  # frozen parameters and float buffers: the plain mean
        step = delta[: len(trained)]
        for velocity in moments:
            step = velocity.mul_(self.momentum).add_(step)
        trained.sub_(step, alpha=self.learning_rate)


@dataclass(frozen=True)
class Adaptive:
    """FedAdam, FedYogi and FedAdagrad: Reddi et al. 2021, algorithm 2, whose pseudo-gradient is −delta.

    params ← params − learning_rate × m / (√v + 0.001), where m ← momentum × m + (1 − momentum) × delta, and v gathers
    delta² in the way of `kind`.
    """

    kind: str
    learning_rate: float
    momentum: float
    num_moments: int = 2

    def step(self, state: ServerState, delta: torch.Tensor, part: slice) -> None:
        """As `SGD.step`."""
        trained, averaged, (m, v) = state.slices(part)
        averaged.sub_(delta[len(trained) :])
        delta = delta[: len(trained)]
        m.mul_(self.momentum).add_(delta, alpha=1 - self.momentum)
        square = delta.square()
        if self.kind == "adagrad":
            v.add_(square)
        elif self.kind == "adam":
            v.mul_(_SECOND_DECAY).add_(square, alpha=1 - _SECOND_DECAY)
        else:
            v.sub_(square.mul_(torch.sign(v - square)), alpha=1 - _SECOND_DECAY)
        trained.sub_(m.div(v.sqrt().add_(_EPSILON)), alpha=self.learning_rate)


def optimiser(config: Config) -> SGD | Adaptive:
    """The server's optimiser, as configured."""
    kind, rate, momentum = config.server_optimiser, config.server_learning_rate, config.server_momentum
    if kind == "sgd":
        return SGD(1.0 if rate is None else rate, momentum or 0.0)
    if momentum is None:
        momentum = 0.0 if kind == "adagrad" else 0.9
    return Adaptive(kind, _EPSILON if rate is None else rate, momentum)


def arrays(model: FlatModel, block: torch.Tensor) -> dict[str, npt.NDArray[np.generic]]:
    """The server's state by tensor name: `block` (1 + moments, size) on the CPU, parameters first."""
    tensors = model.arrays(block[0])
    for number, moment in enumerate(block[1:]):
        views = model.layout.views(moment).items()
        tensors |= {_MOMENT.format(number) + name: view.numpy() for name, view in views}
    return tensors


def fill(model: FlatModel, block: torch.Tensor, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a state, as `arrays` gives it, into `block`, and the model's integer buffers."""
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
