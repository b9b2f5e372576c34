"""FedDyn: Acar et al. 2021, algorithm 1.

Site k keeps g_k, and the server h; all start at 0. From the server's θ, site k trains on its regularised objective, and then
renews g_k:

    θ_k = argmin L_k(θ_k) − ⟨g_k, θ_k⟩ + α/2 ‖θ_k − θ‖²,   g_k ← g_k − α (θ_k − θ)

The server, with P the cohort and m the number of all sites:

    h ← h − α (1/m) Σ_P (θ_k − θ),   θ ← (1/|P|) Σ_P θ_k − h / α

Here local training takes the place of the argmin, and g_k / α and h / α are kept: with delta_k = θ − θ_k, the gradient of
the terms is α (θ_k − θ − g_k / α), g_k / α grows by delta_k, and h / α by |P|/m × the mean delta.
"""

from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort
from scaling_fl.federated.algorithms import Start
from scaling_fl.federated.algorithms.fedprox import Proximal
from scaling_fl.federated.server_state import ServerState
from scaling_fl.models.flat_parameters import Layout

_DUAL = "feddyn_dual"


@dataclass(frozen=True)
class Dynamic(Proximal):
    """Both terms of one site in one round: up to a constant, α/2 ‖w − target‖² with the target θ + g_k / α."""

    dual: torch.Tensor  # (trained,): g_k / α

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        return {_DUAL: self.dual + delta[: len(self.dual)]}


@dataclass(frozen=True)
class DynamicServer:
    """The server's step."""

    share: float  # |P|/m
    initial_moments: tuple[float, ...] = (0.0,)

    def step(self, state: ServerState, delta: torch.Tensor, chunk: slice) -> None:
        """See `server.SGD.step`."""
        trained, averaged, (h,) = state.slices(chunk)
        averaged.sub_(delta[len(trained) :])
        delta = delta[: len(trained)]
        h.add_(delta, alpha=self.share)
        trained.sub_(delta).sub_(h)


def used(config: Config) -> bool:
    """See the package."""
    return config.feddyn_alpha > 0


def begin(start: Start) -> Dynamic:
    """See the package."""
    resident = start.site.resident
    dual = start.own(_DUAL)
    target = start.params[: len(dual)].to(resident.device) + dual
    return Dynamic(resident.config.feddyn_alpha, target, dual)


def server(config: Config) -> DynamicServer:
    """The server's part."""
    return DynamicServer(cohort.share(config))


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """See the package."""
    return {} if config.feddyn_alpha == 0 else {_DUAL: layout.trained}
