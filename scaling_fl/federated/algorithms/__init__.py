"""What methods change in a site's local training, and what travels beside the parameters: one module each, with paper
and formula.

`used(config)` says whether the configuration asks for a module. `begin(start)` then returns its `LocalTerm` for one site and
round, or `None` if the site has none.
A module may also have `extra_size(config, layout)`, the number of values that the server keeps and sites change beside the
parameters, `site_state(config, layout)`, what each site keeps between rounds: tensor names with sizes, and
`own_params(config, layout, params, kept)`, the site's own model out of the server's. A new method is a new module and a name
below.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from scaling_fl.config.schema import Config
from scaling_fl.models.flat_parameters import Layout

if TYPE_CHECKING:
    from scaling_fl.federated.site import Site

# In the order in which they finish.
NAMES = ("fedprox", "feddyn", "scaffold", "ditto", "lora_alternate", "lora_ranks", "attack", "personal", "upload")

CLIP_SIZE = 16  # for the adaptive clip of aggregation/private.py: one value, and alignment to 64 bytes


class Start(NamedTuple):
    """Where a site begins a round. Its model holds the parameters."""

    site: "Site"
    round: int
    params: torch.Tensor  # (size,): the server's
    extra: torch.Tensor  # (extra,): the server's
    kept: Mapping[str, torch.Tensor]  # by the site since its last round

    def own(self, name: str) -> torch.Tensor:
        """The site's tensor (trained,) of this name on its device; zeros before its first round."""
        resident = self.site.resident
        if name in self.kept:
            return self.kept[name].to(resident.device)
        return torch.zeros(resident.model.layout.trained, device=resident.device)


class LocalTerm:
    """A method's part in the local training of one site in one round. By default nothing."""

    def labels(self, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
        """The labels (B,) to train on, in the place of the examples' own."""
        return labels

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """Add to the `gradient` (trained,) at the site's parameters `flat` (size,), in place, before each step."""

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """Return what the site keeps, after steps whose learning rates sum to `rates` have moved it by −`delta` (size,).

        Write to `extra` (extra,) what travels beside the delta: the server subtracts its weighted mean from its own.
        """
        return {}


class Resting(LocalTerm):
    """Parameters that rest in a round: without a gradient, no optimiser that starts afresh moves them."""

    def __init__(self, at: torch.Tensor):
        self._at = at  # (k,): positions in the flat buffer

    def add_gradient(self, gradient: torch.Tensor, flat: torch.Tensor) -> None:
        """See `LocalTerm.add_gradient`."""
        gradient[self._at] = 0


def own_params(config: Config, layout: Layout, params: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The parameters (size,) of a site's own model, from the server's `params` and what the site keeps."""
    for module in _modules():
        if hasattr(module, "own_params"):
            params = module.own_params(config, layout, params, kept)
    return kept.get("params", params)  # baseline=local_only


def local_terms(start: Start) -> list[LocalTerm]:
    """The terms of a site that begins a round."""
    used = (module for module in _modules() if module.used(start.site.resident.config))
    return [term for module in used if (term := module.begin(start)) is not None]


def shape_deltas(config: Config) -> bool:
    """Whether a site may send anything but the difference between the server's parameters and its own."""
    return config.download != "fp32" or any(module.used(config) for module in _modules())


def extra_size(config: Config, layout: Layout) -> int:
    """The number of values that travel beside the parameters."""
    of_methods = sum(module.extra_size(config, layout) for module in _modules() if hasattr(module, "extra_size"))
    return of_methods + (CLIP_SIZE if config.dp_clip_quantile is not None else 0)


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """The names and sizes of the tensors that methods keep at each site."""
    found = (module.site_state(config, layout) for module in _modules() if hasattr(module, "site_state"))
    return {name: size for of_module in found for name, size in of_module.items()}


def _modules() -> list[Any]:
    return [importlib.import_module(f"{__name__}.{name}") for name in NAMES]
