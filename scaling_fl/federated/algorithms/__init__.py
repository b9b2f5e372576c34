"""What methods change in a site's local training: one module each, with paper and formula.

A module has `begin(config, params, device)`. It returns the method's `LocalTerm` for one site and round, or `None` if the
configuration doesn't ask for the method. A new method is a new module and a name below.
"""

import importlib
from typing import Protocol

import torch

from scaling_fl.config.schema import Config

NAMES = ("fedprox",)


class LocalTerm(Protocol):
    """A term of a site's local objective."""

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """Add the term's gradient at the site's parameters `flat` (size,) to `gradient` (trained,), in place."""


def local_terms(config: Config, params: torch.Tensor, device: torch.device) -> list[LocalTerm]:
    """The terms of a site that starts from the server's `params` (size,) and trains on `device`."""
    modules = (importlib.import_module(f"{__name__}.{name}") for name in NAMES)
    return [term for module in modules if (term := module.begin(config, params, device)) is not None]
