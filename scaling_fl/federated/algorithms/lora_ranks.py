"""HetLoRA (Cho et al. 2024): sites have adapters of different ranks, the server of the largest.

A site of rank r_k takes the first r_k rows of A and columns of B. It sends them padded with zeros. Pruning and the weights by
the norm of B A are left out.
"""

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.flat_parameters import Layout


class Padded(LocalTerm):
    """The rows and columns beyond the site's rank: 0, and without a gradient."""

    def __init__(self, at: torch.Tensor):
        self._at = at  # (k,): positions in the flat buffer

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """See `LocalTerm.add_gradient`."""
        gradient[self._at] = 0


def begin(start: Start) -> Padded | None:
    """See the package."""
    resident, site = start.site.resident, start.site.number
    if resident.config.lora_ranks is None:
        return None
    at = beyond(resident.model.layout, of_site(resident.config, site)).to(resident.device)
    resident.model.flat[at] = 0
    return Padded(at)


def of_site(config: Config, site: int) -> int:
    """The rank of a site's adapters."""
    if config.lora_ranks is None or config.baseline == "centralised":
        return config.lora_rank
    return config.lora_ranks[site % len(config.lora_ranks)]


def beyond(layout: Layout, rank: int) -> torch.Tensor:
    """The positions (k,) in the flat buffer of the trained rows of A and columns of B that a site of `rank` hasn't."""
    found = [torch.empty(0, dtype=torch.int64)]
    for name, start, shape in layout.entries:
        if start < layout.trained and (MATRIX_A in name or MATRIX_B in name):
            at = torch.arange(start, start + shape.numel()).view(shape)
            found.append((at[rank:] if MATRIX_A in name else at[:, rank:]).flatten())
    return torch.cat(found)
