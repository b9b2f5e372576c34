"""HetLoRA (Cho et al. 2024): sites have adapters of different ranks, the server of the largest.

A site of rank r_k takes the first r_k rows of A and columns of B. It sends them padded with zeros. Pruning and the weights by
the norm of B A are left out.
"""

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import Resting, Start
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.models.selection import personal_positions


def used(config: Config) -> bool:
    """See the package."""
    return config.lora_ranks is not None


def begin(start: Start) -> Resting:
    """See the package."""
    resident, site = start.site.resident, start.site.number
    # The rows and columns beyond the site's rank are 0, and stay so.
    at = beyond(resident.model.layout, of_site(resident.config, site)).to(resident.device)
    resident.model.flat[at] = 0
    return Resting(at)


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


def num_absent(config: Config, layout: Layout, rank: int) -> int:
    """The trained values, without personal ones, that a site of `rank` doesn't receive or send."""
    if config.lora_ranks is None or config.secure_aggregation:  # masks hide all values alike
        return 0
    absent = torch.zeros(layout.trained, dtype=torch.bool)
    absent[beyond(layout, rank)] = True
    if config.personal is not None:
        absent[personal_positions(layout, config.personal)] = False
    return int(absent.sum())
