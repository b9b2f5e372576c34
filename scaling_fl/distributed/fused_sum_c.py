"""The sum in fixed point on CPUs, by a C function. The first job on a machine compiles it, in less than a second."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("fixed_sum.c")
_FLAGS = ("-O3", "-shared", "-fPIC")
_TIMEOUT = 60  # seconds


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled function. Raises OSError or a SubprocessError if it can't be compiled here."""
    digest = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:16]
    built = _SOURCE.parent / "__pycache__" / f"fixed_sum.{platform.machine()}-{digest}.so"
    if not built.exists():
        _compile(built)
    found = ctypes.CDLL(str(built))
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found.add_fixed.argtypes = (pointer, pointer, pointer, size, ctypes.c_float, ctypes.c_int)
    found.add_fixed.restype = ctypes.c_uint32
    found.mean_fixed.argtypes = (pointer, pointer, pointer, pointer, pointer, ctypes.c_int, size)
    found.mean_fixed.restype = None
    return found


def _compile(target: Path) -> None:
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "g++", "clang"))), None)
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # several workers may compile at the same time
        made = Path(folder) / target.name
        command = [compiler, "-x", "c", *_FLAGS, "-o", str(made), str(_SOURCE)]
        subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT)
        os.replace(made, target)


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
