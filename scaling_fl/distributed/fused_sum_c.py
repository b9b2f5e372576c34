"""The sum in fixed point on CPUs, by C functions."""

import ctypes
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from scaling_fl import c_library

_SOURCE = Path(__file__).with_name("fixed_sum.c")


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions; raises what `c_library.compiled` raises."""
    found = c_library.compiled(_SOURCE)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found.add_fixed.argtypes = (pointer, pointer, pointer, size, ctypes.c_float, ctypes.c_int)
    found.add_fixed.restype = ctypes.c_uint32
    found.mean_fixed.argtypes = (pointer, pointer, pointer, pointer, pointer, ctypes.c_int, size)
    found.mean_fixed.restype = None
    return found


def add_fixed(
    total: torch.Tensor, row: torch.Tensor, scale: float, first: bool, server: torch.Tensor | None = None
) -> torch.Tensor:
    """As `fused_sum.add_fixed`, on the CPU, by the calling thread."""
    bits = library().add_fixed(total.data_ptr(), row.data_ptr(), _place(server), len(total), scale, first)
    return _values([bits])[0]


def mean_fixed(
    mean: torch.Tensor,
    rows: Sequence[torch.Tensor],
    scales: Sequence[float],
    servers: Sequence[torch.Tensor | None],
) -> torch.Tensor:
    """mean ← Σ scale × delta, float32 (n,) each, with the sum in fixed point: scales are 2^48 times as large as weights.

    The delta of a row is the row itself, or its server − row if it has a server. Returns the largest |delta| of each row
    (rows,), NaN if any is NaN.
    """
    count = len(rows)
    places = ctypes.c_void_p * count
    largest = (ctypes.c_uint32 * count)()
    library().mean_fixed(
        mean.data_ptr(), places(*map(_place, rows)), places(*map(_place, servers)), (ctypes.c_float * count)(*scales),
        largest, count, len(mean),
    )  # fmt: skip
    return _values(largest)


def _place(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _values(bits: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(bits), dtype=torch.int64).to(torch.int32).view(torch.float32)
