"""SCAFFOLD: Karimireddy et al. 2020, algorithm 1.

The server keeps a control variate c, and each site its own c_i; all start at 0. A local SGD step follows
g_i(y) − c_i + c in the place of g_i(y), so that sites with unlike data drift less. After K steps from the server's x to y
with learning rate η:

    c_i⁺ = ∇f_i(x)                            option I, over the whole shard, without dropout
    c_i⁺ = c_i − c + (x − y) / (K η)          option II: the mean gradient of the steps

    x ← x + server step with (1/|S|) Σ_S (y − x),   c ← c + (1/N) Σ_S (c_i⁺ − c_i)

S is the cohort, N the number of all sites. K η is the sum of the learning rates if these vary. Only trained parameters have
control variates. What travels is −(|S|/N) (c_i⁺ − c_i), because the server subtracts means.
"""

from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.federated.full_gradient import full_gradient
from scaling_fl.models.flat_parameters import Layout

_CONTROL = "scaffold_control"


@dataclass(frozen=True)
class Scaffold(LocalTerm):
    """The control variates of one site in one round, (trained,) each."""

    server: torch.Tensor  # c
    own: torch.Tensor  # c_i
    correction: torch.Tensor  # c − c_i
    gradient: torch.Tensor | None  # ∇f_i(x), for option I
    share: float  # |S|/N

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """See `LocalTerm.add_gradient`."""
        gradient.add_(self.correction)

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        new = self.gradient
        if new is None:
            new = delta[: len(self.own)].div(rates).sub_(self.correction)
        torch.sub(self.own, new, out=extra).mul_(self.share)
        return {_CONTROL: new}


def used(config: Config) -> bool:
    """See the package."""
    return config.scaffold is not None


def begin(start: Start) -> Scaffold:
    """See the package."""
    resident = start.site.resident
    config = resident.config
    server = start.extra.to(resident.device)
    own = start.own(_CONTROL)
    gradient = full_gradient(resident, start.site.shard).clone() if config.scaffold == "I" else None
    return Scaffold(server, own, server - own, gradient, cohort.share(config))


def extra_size(config: Config, layout: Layout) -> int:
    """See the package."""
    return 0 if config.scaffold is None else layout.trained


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """See the package."""
    return {} if config.scaffold is None else {_CONTROL: layout.trained}
