"""FedProx: Li et al. 2020, algorithm 2.

Site k minimises h_k(w; w^t) = F_k(w) + μ/2 ‖w − w^t‖² (equation 2) from the server's w^t, so the term's gradient is
μ (w − w^t). Only trained parameters count. μ = 0 is FedAvg. Unlike the paper, sites are weighted as `weighting` says.
"""

from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.weighted_sum import CHUNK
from scaling_fl.federated.algorithms import LocalTerm, Start


@dataclass(frozen=True)
class Proximal(LocalTerm):
    """mu/2 ‖w − target‖²."""

    mu: float
    target: torch.Tensor  # (trained,) or longer

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """See `LocalTerm.add_gradient`. In chunks, so that the difference stays in a core's cache."""
        length = CHUNK[gradient.device.type]
        for first in range(0, len(gradient), length):
            chunk = slice(first, min(first + length, len(gradient)))
            gradient[chunk].add_(flat[chunk] - self.target[chunk], alpha=self.mu)


def used(config: Config) -> bool:
    """See the package."""
    return config.proximal_mu > 0


def begin(start: Start) -> Proximal:
    """See the package."""
    resident = start.site.resident
    return Proximal(resident.config.proximal_mu, start.params.to(resident.device))
