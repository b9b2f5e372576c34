"""Parameters that a key selects: the classification head, or all whose names match a regular expression."""

import re
from collections.abc import Iterable, Sequence

import torch

from scaling_fl.errors import UserError
from scaling_fl.models.flat_parameters import Layout

_SHOWN = 4  # names in an error


def select(key: str, which: str, names: Sequence[str], base_prefix: str) -> list[str]:
    """Of `names`, those that `which` selects: "head", all outside the base model, or a part of the name, as a regular
    expression.

    Raises `UserError` with the configuration `key` if the expression is invalid or selects nothing.
    """
    try:
        pattern = re.compile(which)
    except re.error as error:
        raise UserError(
            f"{key}={which}: not a regular expression ({error}); write head, or a part of the names such as layer\\.5"
        ) from error
    if which == "head":
        chosen = [name for name in names if not name.startswith(f"{base_prefix}.")]
    else:
        chosen = [name for name in names if pattern.search(name)]
    if not chosen:
        shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else []), *names[-2:]])
        raise UserError(
            f"{key}={which}: selects none of the model's parameters, which are {shown}; correct the expression"
        )
    return chosen


def trained_names(layout: Layout) -> list[str]:
    """The names of the parameters that optimisers update."""
    return [entry.name for entry in layout.entries if entry.start < layout.trained]


def positions(layout: Layout, names: Iterable[str]) -> torch.Tensor:
    """The positions (k,) of these tensors' values in the flat buffer, int64."""
    chosen = set(names)
    spans = [
        torch.arange(entry.start, entry.start + entry.shape.numel()) for entry in layout.entries if entry.name in chosen
    ]
    return torch.cat(spans)


def personal_positions(layout: Layout, personal: str) -> torch.Tensor:
    """The positions of the parameters that the key `personal` leaves at the sites. Raises `UserError` if it leaves all."""
    names = trained_names(layout)
    chosen = select("personal", personal, names, layout.base_prefix)
    if len(chosen) == len(names):
        raise UserError(f"personal={personal}: selects all parameters, so none are averaged; set baseline=local_only")
    return positions(layout, chosen)
