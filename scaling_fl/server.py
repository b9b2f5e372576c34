"""The server's side of a round: its state, and the optimiser that applies the aggregated delta to it."""

import threading
from dataclasses import dataclass, field

import torch


@dataclass
class ServerState:
    """All that a checkpoint needs."""

    params: torch.Tensor  # (size,) float32, laid out as flat.py says
    trained: int  # params[:trained] are trained; what follows is averaged and never optimised
    round: int  # the last round that is complete; 0 before any training
    # Held from a round's aggregation until it is reported: without it, `params` are those of a round half done.
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class SGD:
    """params ← params − learning_rate × delta. With learning_rate = 1 this is FedAvg (McMahan et al. 2017):
    since delta = params − site's parameters, the result is the weighted mean of the sites' parameters.
    """

    learning_rate: float = 1.0

    def step(self, state: ServerState, delta: torch.Tensor, part: slice) -> None:
        """Apply `delta`, which is the `part` of the aggregated delta that this worker holds, in place."""
        params = state.params[part]
        trained = max(0, min(state.trained - part.start, len(params)))
        params[:trained].sub_(delta[:trained], alpha=self.learning_rate)
        params[trained:].sub_(delta[trained:])  # frozen parameters and float buffers: the plain mean
