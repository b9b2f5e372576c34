"""Personal parameters: FedPer (Arivazhagan et al. 2019, algorithms 1 and 2), with the classification head or any others.

With the shared parameters B and site k's own P_k, the site trains both from (B, P_k). Then

    B ← Σ w_k B_k,   P_k ← P_k after its training

Personal parameters stay at the site: they don't travel, and each site goes on from its own. What a site keeps is how far
its own parameters are below the server's, which never change. So the server's parameters are those of a site that hasn't
trained.
"""

from collections.abc import Mapping

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.models.selection import personal_positions

_OWN = "personal"


class Personal(LocalTerm):
    """The parameters of one site in one round."""

    def __init__(self, at: torch.Tensor):
        self._at = at  # (k,): positions in the flat buffer

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        own = delta[self._at]
        delta[self._at] = 0
        return {_OWN: own}


def used(config: Config) -> bool:
    """See the package."""
    return config.personal is not None


def begin(start: Start) -> Personal:
    """See the package."""
    resident = start.site.resident
    assert resident.config.personal is not None
    at = personal_positions(resident.model.layout, resident.config.personal).to(resident.device)
    if _OWN in start.kept:
        resident.model.flat[at] -= start.kept[_OWN].to(resident.device)
    return Personal(at)


def own_params(config: Config, layout: Layout, params: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """See the package."""
    if _OWN not in kept:
        return params
    own, at = params.clone(), personal_positions(layout, str(config.personal))
    own[at.to(own.device)] -= kept[_OWN].to(own.device)
    return own


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """See the package."""
    return {} if config.personal is None else {_OWN: len(personal_positions(layout, config.personal))}
