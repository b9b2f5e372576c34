"""Dropout on CPUs, which draws the numbers that PyTorch draws, ten times as fast.

PyTorch asks its generator, a Mersenne Twister, for one number after the other. A C function makes 624 at once, in the
processor's vectors. The draws are the same, and so is the generator's state after them: a site equals plain fine-tuning in
PyTorch, bit by bit.
"""

import contextlib
import ctypes
import functools
import warnings
from pathlib import Path
from typing import Any

import torch

from scaling_fl import c_library

_SOURCE = Path(__file__).with_name("bernoulli.c")
_OPERATOR = "bernoulli_.float"  # what `torch.dropout` and attention draw by
_NUM_TRIED = 1000

_kept: list[torch.library.Library] = []  # what lets go of it lets go of the kernel


def enable() -> None:
    """From now on, draw so in this process; unless a trial shows that PyTorch draws otherwise, or there is no compiler."""
    if _kept or not hasattr(torch.library, "get_kernel") or not _is_same():  # old versions lack it
        return
    original = torch.library.get_kernel(f"aten::{_OPERATOR}", "CPU")
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):  # that there is a kernel already
        library.impl(_OPERATOR, functools.partial(_bernoulli, original), "CPU", with_keyset=True)
    _kept.append(library)


def draw(values: torch.Tensor, p: float, generator: torch.Generator) -> None:
    """As `values.bernoulli_(p, generator=generator)`; contiguous float32 on the CPU, 0 ≤ p ≤ 1."""
    state = generator.get_state()
    _library().bernoulli(values.data_ptr(), values.numel(), p, state.data_ptr())
    generator.set_state(state)


def _bernoulli(original: Any, keyset: Any, values: torch.Tensor, p: float = 0.5, *, generator: Any = None) -> Any:
    if values.dtype != torch.float32 or not values.is_contiguous() or not 0 <= p <= 1:
        return original.call_boxed(keyset, values, p, generator=generator)
    draw(values, p, generator or torch.default_generator)
    return values


def _is_same() -> bool:
    """Whether both ways draw the same, and leave the generator in the same state."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    mine, expected = torch.empty(2, _NUM_TRIED)
    with contextlib.suppress(Exception):  # there may be no compiler, or another version of PyTorch
        for p in (0.9, 1 / 3):
            draw(mine, p, generators[0])
            expected.bernoulli_(p, generator=generators[1])
            if not torch.equal(mine, expected) or not torch.equal(*(g.get_state() for g in generators)):
                return False
            for generator in generators:
                torch.rand(1, generator=generator)  # one word: a draw's two are in two blocks then
        return True
    return False


@functools.cache
def _library() -> ctypes.CDLL:
    found = c_library.compiled(_SOURCE)
    found.bernoulli.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_void_p)
    found.bernoulli.restype = None
    return found
