"""State files: the named tensors of a state and a JSON header in one file that carries its own checksum.

The format is safetensors with one metadata entry, the header, which includes a checksum of tensors and header. Nothing
is ever unpickled. A state may exceed memory: it is written and read tensor by tensor. This module needs no torch.
"""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import xxhash

FORMAT_VERSION = 2
# The checksum's name in the header, and its function. It finds damage, not tampering: XXH3 is as good at that as SHA-256,
# and several times faster.
_CHECKSUM: tuple[str, Callable[[bytes], Any]] = ("xxh3_128", xxhash.xxh3_128)
_CHECKSUMS = {1: ("sha256", hashlib.sha256), FORMAT_VERSION: _CHECKSUM}  # by format version
_KINDS = {"f": "F", "i": "I", "u": "U"}  # numpy's letters → safetensors' letters

Arrays = Mapping[str, npt.NDArray[Any]]


class Damaged(Exception):
    """A state file is truncated, altered, or of an unknown format version."""


class TensorFiles(Arrays):
    """The tensors of safetensors files by name, read on access.

    If several files hold a name, the last takes precedence. The files may be removed once they are open.
    """

    def __init__(self, *paths: Path):
        opened = [safetensors.safe_open(path, framework="numpy") for path in paths]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = self._files[name].get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def write_state(path: Path, tensors: Arrays, header: Mapping[str, Any]) -> None:
    """Write a state file. It is not synced to disk: that is left to the code that publishes it."""
    header = dict(header) | {"format_version": FORMAT_VERSION}
    name, function = _CHECKSUM
    checksum, layouts = _checksum(function, tensors, header)
    head: dict[str, Any] = {"__metadata__": {"scaling_fl": json.dumps(header | {name: checksum})}}
    # Widest types first, so that each tensor is aligned.
    names, stop = sorted(layouts, key=lambda name: (-layouts[name][0].itemsize, name)), 0
    for name in names:
        dtype, shape = layouts[name]
        start, stop = stop, stop + dtype.itemsize * int(np.prod(shape))
        kind = "BOOL" if dtype == np.bool_ else f"{_KINDS[dtype.kind]}{8 * dtype.itemsize}"
        head[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, stop]}
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    path.unlink(missing_ok=True)  # processes that read the old file keep it
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(_bytes(np.asarray(tensors[name], order="C")))


def read_state(path: Path) -> tuple[TensorFiles, dict[str, Any]]:
    """Tensors and header of a state file. Raises `Damaged` unless it is exactly what was written."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["scaling_fl"])
        version = header["format_version"]
        if version not in _CHECKSUMS:
            raise Damaged(
                f"it has format version {version}; this program reads versions {' and '.join(map(str, _CHECKSUMS))}"
            )
        name, function = _CHECKSUMS[version]
        checksum, tensors = header.pop(name), TensorFiles(path)
        if _checksum(function, tensors, header)[0] != checksum:
            raise Damaged("its checksum doesn't match its content")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return tensors, header


def _checksum(
    function: Callable[[bytes], Any], tensors: Arrays, header: Mapping[str, Any]
) -> tuple[str, dict[str, tuple[np.dtype[Any], tuple[int, ...]]]]:
    """The checksum of header and tensors in hexadecimal digits, and the tensors' dtypes and shapes."""
    digest, layouts = function(json.dumps(header, sort_keys=True).encode()), {}
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        layouts[name] = array.dtype, array.shape
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(_bytes(array))
    return digest.hexdigest(), layouts


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
