"""The sum in fixed point on CPUs, by a C function. The first job on a machine compiles it, in less than a second."""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
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
    found.add_fixed.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int)
    found.mean_fixed.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
    found.add_fixed.restype = found.mean_fixed.restype = ctypes.c_uint32
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


def add_fixed(total: torch.Tensor, addend: torch.Tensor, scale: float, first: bool) -> torch.Tensor:
    """As `fused_sum.add_fixed`, on the CPU, by the calling thread."""
    return _value(library().add_fixed(total.data_ptr(), addend.data_ptr(), len(total), scale, first))


def mean_fixed(mean: torch.Tensor, rows: Sequence[torch.Tensor], scales: Sequence[float]) -> torch.Tensor:
    """mean ← Σ scale × row, float32 (n,) each, with the sum in fixed point: scales are 2^48 times as large as weights.

    Returns the largest |value| of the rows, NaN if any is NaN.
    """
    count = len(rows)
    places = (ctypes.c_void_p * count)(*(row.data_ptr() for row in rows))
    return _value(library().mean_fixed(mean.data_ptr(), places, (ctypes.c_float * count)(*scales), count, len(mean)))


def _value(bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
