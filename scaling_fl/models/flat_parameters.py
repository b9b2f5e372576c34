"""A model whose float state lives in one flat buffer: a round moves one tensor, and an optimiser step is one kernel.

Layout: trained matrices (with weight decay) | trained vectors (biases and norms, without) | frozen parameters and float
buffers (averaged, never optimised). Entries are aligned to 64 bytes. Tied parameters share one entry. Integer buffers
stay outside: they are not averaged, and every round starts from the server's. So does the base that `trainable` freezes.
"""

import contextlib
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

_Taker = Callable[[torch.Tensor], None]  # of the gradient of a parameter
_ALIGNMENT = 16  # float32 values in 64 bytes: a cache line, and the widest vector load


class Entry(NamedTuple):
    name: str
    start: int
    shape: torch.Size


class Layout:
    """The position of each tensor of `module` in the flat buffer. Offsets and sizes count float32 values."""

    def __init__(self, module: torch.nn.Module):
        persistent = module.state_dict(keep_vars=True).keys()
        buffers = {name: b for name, b in module.named_buffers() if name in persistent}
        self.integer_names = [name for name, b in buffers.items() if not b.is_floating_point()]
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        base: frozenset[str] = getattr(module, "base_names", frozenset())  # models/base.py
        frozen: dict[str, torch.Tensor] = {
            name: p for name, p in module.named_parameters() if not p.requires_grad and name not in base
        }
        self.fixed = frozenset(frozen)  # frozen parameters in the buffer: no site ever changes them
        frozen |= {name: b for name, b in buffers.items() if b.is_floating_point()}

        self.base_prefix: str = getattr(
            module, "base_model_prefix", ""
        )  # of the names of all parameters but the head's

        self.entries: list[Entry] = []
        self.size = 0
        self._append({name: p for name, p in trained.items() if p.ndim >= 2})
        self.decayed = self.size  # [0, decayed): weight decay applies
        self._append({name: p for name, p in trained.items() if p.ndim < 2})
        self.trained = self.size  # [0, trained): updated by optimisers
        self._append(frozen)

    def _append(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}, expected torch.float32")
            self.entries.append(Entry(name, self.size, tensor.shape))
            self.size += -(-tensor.numel() // _ALIGNMENT) * _ALIGNMENT

    def gaps(self) -> Iterator[slice]:
        """Yield the padding within the trained part, which belongs to no tensor."""
        ends = [entry.start for entry in self.entries[1:]] + [self.size]
        for entry, end in zip(self.entries, ends, strict=True):
            if entry.start < self.trained:
                yield slice(entry.start + entry.shape.numel(), end)

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of `flat` by tensor name; a shorter buffer than `size` has the leading tensors only."""
        stops = {e.name: e.start + e.shape.numel() for e in self.entries}
        return {e.name: flat[e.start : stops[e.name]].view(e.shape) for e in self.entries if stops[e.name] <= len(flat)}


class FlatModel:
    """`module` with its parameters and float buffers as views of a flat buffer, and a flat gradient.

    `row`: (layout.size + extra,) float32, zeroed, on the module's device. The module's values are copied into its first
    part, `flat` (layout.size,), unless they are `arbitrary`. The rest, `extra`, travels with deltas.
    """

    def __init__(self, module: Any, row: torch.Tensor, arbitrary: bool = False):
        self.module, self.row, self.layout = module, row, Layout(module)
        self.flat = flat = row[: self.layout.size]
        self.extra = row[self.layout.size :]
        self.gradient = _zeros(self.layout.trained, flat.device)
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        self._integers = {name: (tensors[name], tensors[name].clone()) for name in self.layout.integer_names}
        self._parameters = {name: t for name, t in tensors.items() if isinstance(t, torch.nn.Parameter)}
        for name, view in self.layout.views(flat).items():
            if not arbitrary:
                view.copy_(tensors[name].data)
            tensors[name].data = view
        self._gradients = self.layout.views(self.gradient)
        self._unwritten: dict[str, torch.Tensor] = {}
        self._takers: Mapping[str, _Taker] = {}
        self.collects = _collects(flat.device)
        for name, view in self._gradients.items():
            if self.collects:
                tensors[name].register_post_accumulate_grad_hook(functools.partial(self._collect, name))
            else:
                tensors[name].grad = view

    @contextlib.contextmanager
    def new_gradient(self, takers: Mapping[str, _Taker] = types.MappingProxyType({})) -> Iterator[None]:
        """`gradient` becomes the sum over the backward passes inside this context; a backward pass outside adds to it.

        On CPUs, the first pass writes each part: zeroing the gradient and adding to it takes twice as many passes over memory.
        `takers`: by the names of parameters, who gets the gradient at once in the place of `gradient`, if the model
        `collects`; there must be one backward pass.
        """
        if self.collects:
            self._unwritten, self._takers = dict(self._gradients), takers
        else:
            self.gradient.zero_()
        yield
        while self._unwritten:  # parameters that no pass has reached
            name, view = self._unwritten.popitem()
            if name in takers:
                takers[name](torch.zeros_like(view))
            else:
                view.zero_()
        self._takers = {}

    def _collect(self, name: str, parameter: torch.Tensor) -> None:
        """Move the gradient that a backward pass has left at a parameter to its place."""
        found, parameter.grad = parameter.grad, None
        assert found is not None
        first = self._unwritten.pop(name, None) is not None
        if name in self._takers:
            assert first, f"a backward pass has reached {name} twice"
            self._takers[name](found)
            return
        (self._gradients[name].copy_ if first else self._gradients[name].add_)(found)

    def load(self, values: torch.Tensor) -> None:
        """Load the float state `values` (layout.size,) and the server's integer buffers."""
        self.flat.copy_(values)
        self._load_integers()

    @contextlib.contextmanager
    def reading(self, values: torch.Tensor) -> Iterator[None]:
        """Inside this context, the module computes with `values` (layout.size,), which nothing may change.

        On the same device, its parameters are views of them, without a copy: workers read the server's memory at once.
        Buffers are copied, as a forward pass may write to them.
        """
        if values.device != self.flat.device:
            self.load(values)
            yield
            return
        own, given = self.layout.views(self.flat), self.layout.views(values)
        for name, view in own.items():
            if name in self._parameters:
                self._parameters[name].data = given[name]
            else:
                view.copy_(given[name])
        self._load_integers()
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                if name in own:
                    parameter.data = own[name]

    def _load_integers(self) -> None:
        for buffer, initial in self._integers.values():
            buffer.copy_(initial)

    def fill(self, values: torch.Tensor, tensors: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Inverse of `arrays`: write `tensors` into the flat buffer `values` and the integer buffers."""
        views = self.layout.views(values)
        expected = {name: tuple(view.shape) for name, view in views.items()}
        expected |= {name: tuple(buffer.shape) for name, (buffer, _) in self._integers.items()}
        found = {name: array.shape for name, array in tensors.items()}
        if expected != found:
            differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(f"the state belongs to another model; it differs in {', '.join(differing[:5])}")
        for name, view in views.items():
            view.copy_(torch.from_numpy(tensors[name]))
        self.fill_integers(tensors)

    def fill_integers(self, tensors: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Load the server's integer buffers from `tensors`; leave the flat buffer unchanged."""
        for name, (buffer, initial) in self._integers.items():
            initial.copy_(torch.from_numpy(tensors[name]))
            buffer.copy_(initial)

    def arrays(self, values: torch.Tensor) -> dict[str, npt.NDArray[np.generic]]:
        """Return the state `values` (layout.size,) on the CPU, and the server's integer buffers, by tensor name."""
        arrays = {name: view.numpy() for name, view in self.layout.views(values).items()}
        return arrays | {name: initial.cpu().numpy() for name, (_, initial) in self._integers.items()}


def _collects(device: torch.device) -> bool:
    """Whether gradients are moved to their place by Python, for which a GPU would wait at each parameter."""
    return device.type == "cpu"


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    """On the CPU, let the system allocate pages on first use: zeroing them at once delays the start of many workers."""
    return torch.from_numpy(np.zeros(size, np.float32)) if device.type == "cpu" else torch.zeros(size, device=device)
