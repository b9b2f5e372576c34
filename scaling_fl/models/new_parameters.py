"""Drawing parameters that pre-trained weights lack: the classification head."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

ALL = "all"  # instead of names, for a model without pre-trained weights
_DONE = "_is_hf_initialized"  # an attribute of parameters that the library initialises no more


@torch.no_grad()
def draw(module: Any, names: Sequence[str], seed: int) -> None:
    """Initialise the parameters `names` in place as the library does, from `seed`. Others keep their values."""
    parameters = dict(module.named_parameters())
    chosen = set(parameters) if list(names) == [ALL] else set(names)
    torch.manual_seed(seed)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in parameters if name in chosen):
        part = module.get_submodule(owner)
        own = {f"{owner}.{name}".lstrip("."): p for name, p in part.named_parameters(recurse=False)}
        kept = {name: parameter.clone() for name, parameter in own.items() if name not in chosen}
        with _as_new([part, *own.values()]):
            module._init_weights(part)
        for name, values in kept.items():
            own[name].copy_(values)


@contextlib.contextmanager
def _as_new(things: Sequence[Any]) -> Iterator[None]:
    marked = [thing for thing in things if getattr(thing, _DONE, False)]
    for thing in marked:
        delattr(thing, _DONE)
    try:
        yield
    finally:
        for thing in marked:
            setattr(thing, _DONE, True)
