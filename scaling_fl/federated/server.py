"""The server optimisers: they apply the aggregated delta to the server's parameters."""

from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import feddyn
from scaling_fl.federated.algorithms.feddyn import DynamicServer
from scaling_fl.federated.server_state import ServerState


@dataclass(frozen=True)
class SGD:
    """params ← params − learning_rate × v, where v ← momentum × v + delta.

    With learning_rate = 1 and no momentum this is FedAvg (McMahan et al. 2017): delta is the weighted mean of
    params − site's parameters, so the result is the weighted mean of the sites' parameters. With momentum it is FedAvgM
    (Hsu et al. 2019). With `nesterov`, delta + momentum × v takes the place of v (Sutskever et al. 2013, in the form of
    `torch.optim.SGD`): the outer step of DiLoCo (Douillard et al. 2023, algorithm 1).
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    nesterov: bool = False

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
            velocity.mul_(self.momentum).add_(step)
            step = step.add(velocity, alpha=self.momentum) if self.nesterov else velocity
        trained.sub_(step, alpha=self.learning_rate)


@dataclass(frozen=True)
class Adaptive:
    """FedAdam, FedYogi and FedAdagrad: Reddi et al. 2021, algorithm 2. The paper's Δ is −delta.

    params ← params − learning_rate × m / (√v + τ), where m ← momentum × m + (1 − momentum) × delta, and v accumulates
    delta² as `kind` does: "adagrad", "adam" or "yogi", these two with the decay `beta2`. m starts at 0 and v at τ², the
    least value that the paper allows.
    """

    kind: str
    learning_rate: float
    momentum: float  # β₁
    beta2: float = 0.99
    tau: float = 1e-3

    @property
    def initial_moments(self) -> tuple[float, ...]:
        """See `SGD.initial_moments`."""
        return (0.0, self.tau**2)

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
            v.mul_(self.beta2).add_(square, alpha=1 - self.beta2)
        else:
            v.sub_(square.mul_(torch.sign(v - square)), alpha=1 - self.beta2)
        trained.sub_(m.div(v.sqrt().add_(self.tau)), alpha=self.learning_rate)


ServerOptimiser = SGD | Adaptive | DynamicServer


def optimiser(config: Config) -> ServerOptimiser:
    """Return the configured server optimiser."""
    if config.feddyn_alpha > 0:
        return feddyn.server(config)
    kind = config.server_optimiser
    given = {
        "learning_rate": config.server_learning_rate, "momentum": config.server_momentum,
        "beta2": config.server_beta2, "tau": config.server_tau,
    }  # fmt: skip
    chosen: dict[str, float] = {name: value for name, value in given.items() if value is not None}
    if kind == "sgd":
        return SGD(**chosen, nesterov=config.server_nesterov)
    return Adaptive(kind, **{"learning_rate": 0.001, "momentum": 0.0 if kind == "adagrad" else 0.9} | chosen)
