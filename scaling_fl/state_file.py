"""A state file: the tensors of a state by name, and a JSON header, in one file that proves itself whole.

It is safetensors with one metadata entry, the header, which ends in a SHA-256 over tensors and header. Nothing is
ever unpickled. This module needs no torch.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

FORMAT_VERSION = 1

Arrays = Mapping[str, npt.NDArray[Any]]


class Damaged(Exception):
    """A state file that is truncated, altered, or of a version that this program doesn't know."""


def write_state(path: Path, tensors: Arrays, header: Mapping[str, Any]) -> None:
    """Write a state file. It isn't forced to the disk: that is the business of whoever publishes it."""
    header = dict(header) | {"format_version": FORMAT_VERSION}
    header["sha256"] = _digest(tensors, header)
    safetensors.numpy.save_file(
        {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()},
        path,
        metadata={"scaling_fl": json.dumps(header)},
    )
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, 0o666 & ~umask)  # safetensors makes it the owner's alone


def read_state(path: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Tensors and header of a state file. Raises `Damaged` where it isn't exactly what was written."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["scaling_fl"])
            version, sha256 = header["format_version"], header.pop("sha256")
            if version != FORMAT_VERSION:
                raise Damaged(f"it has format version {version}; this program reads version {FORMAT_VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        if _digest(tensors, header) != sha256:
            raise Damaged("its checksum doesn't match its content")
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
    return tensors, header


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Some tensors of a state file, unchecked: for readers beside the one that checks it with `read_state`."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in names}


def _digest(tensors: Arrays, header: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
