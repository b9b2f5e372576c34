"""The server optimisers: they apply the aggregated delta to the server's parameters."""

from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.server_state import ServerState

_SECOND_DECAY, _ADAPTIVITY = 0.99, 1e-3  # β₂ and τ of Reddi et al. 2021


@dataclass(frozen=True)
class SGD:
    """params ← params − learning_rate × v, where v ← momentum × v + delta.

    With learning_rate = 1 and no momentum this is FedAvg (McMahan et al. 2017): delta is the weighted mean of
    params − site's parameters, so the result is the weighted mean of the sites' parameters. With momentum it is FedAvgM
    (Hsu et al. 2019).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0

    @property
    def initial_moments(self) -> tuple[float, ...]:
        """The value that each buffer of the state starts at."""
        return (0.0,) * (self.momentum > 0)

    def step(self, state: ServerState, delta: torch.Tensor, chunk: slice) -> None:
        """Update `state` in place with `delta`, the aggregated delta of the slice `chunk` of the flat buffer."""
        trained, averaged, moments = state.slices(chunk)
        averaged.sub_(delta[len(trained) :])  # frozen parameters and float buffers: the plain mean
        step = delta[: len(trained)]
        for velocity in moments:
            step = velocity.mul_(self.momentum).add_(step)
        trained.sub_(step, alpha=self.learning_rate)


@dataclass(frozen=True)
class Adaptive:
    """FedAdam, FedYogi and FedAdagrad: Reddi et al. 2021, algorithm 2. The paper's Δ is −delta.

    params ← params − learning_rate × m / (√v + τ), where m ← momentum × m + (1 − momentum) × delta, and v accumulates
    delta² as `kind` does: "adagrad", "adam" or "yogi". m starts at 0 and v at τ², the least value that the paper allows.
    """

    kind: str
    learning_rate: float
    momentum: float
    initial_moments: tuple[float, ...] = (0.0, _ADAPTIVITY**2)

    def step(self, state: ServerState, delta: torch.Tensor, chunk: slice) -> None:
        """See `SGD.step`."""
        trained, averaged, (m, v) = state.slices(chunk)
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
        trained.sub_(m.div(v.sqrt().add_(_ADAPTIVITY)), alpha=self.learning_rate)


def optimiser(config: Config) -> SGD | Adaptive:
    """Return the configured server optimiser."""
    kind, rate, momentum = config.server_optimiser, config.server_learning_rate, config.server_momentum
    if kind == "sgd":
        return SGD(1.0 if rate is None else rate, momentum or 0.0)
    if momentum is None:
        momentum = 0.0 if kind == "adagrad" else 0.9
    return Adaptive(kind, 0.001 if rate is None else rate, momentum)
