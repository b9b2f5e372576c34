"""Checkpoints: the server state after a round, on disk or in an object store; published whole or not at all.

A state file is safetensors: every tensor by name, and one metadata entry with a JSON header that ends in a
SHA-256 over tensors and header. Nothing is ever unpickled. This module needs no torch.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from fsspec.implementations.local import LocalFileSystem

from scaling_fl.errors import UserError

FORMAT_VERSION = 1
_NAME = re.compile(r"round-(\d{6,})\.safetensors")
_TEMPORARY = ".partial-"  # never listed as a checkpoint

Arrays = Mapping[str, npt.NDArray[Any]]


class Damaged(Exception):
    """A state file that is truncated, altered, or of a version that this program doesn't know."""


def write_state(path: Path, tensors: Arrays, header: Mapping[str, Any], durable: bool = True) -> None:
    """Write a state file, and force it to the disk where it shall outlive a crash of the system."""
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
    if durable:
        _sync(path)


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


class Checkpoints:
    """The folder `checkpoints_dir`: a local path, or any URL that fsspec writes to."""

    def __init__(self, url: str):
        try:
            self.fs, self.root = fsspec.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"checkpoints_dir={url!r}: {error}; give a folder, s3://… or gs://…") from error
        self.url, self.local = url.rstrip("/"), isinstance(self.fs, LocalFileSystem)

    def name(self, file: str) -> str:
        """The full name of a file in the folder, as the user would type it."""
        return f"{self.url}/{file}"

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, newest first. Other files in the folder don't count."""
        self.fs.invalidate_cache()
        try:
            names = [path.rsplit("/", 1)[-1] for path in self.fs.ls(self.root, detail=False)]
        except FileNotFoundError:
            return []
        return sorted((int(match[1]) for match in map(_NAME.fullmatch, names) if match), reverse=True)

    def probe(self) -> None:
        """Write and remove a small file; clear away what a killed run left half-written. Raises `UserError`."""
        probe = f"{self.root}/{_TEMPORARY}probe-{uuid.uuid4().hex}"
        with self._reachable("it can't be written to"):
            self.fs.makedirs(self.root, exist_ok=True)
            self.tidy_up()
            self.fs.pipe_file(probe, b"scaling_fl")
            self.fs.rm_file(probe)

    def tidy_up(self) -> None:
        """Remove what a killed process left half-written."""
        if self.local:
            for stale in Path(self.root).glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)

    def save(self, round_: int, tensors: Arrays, header: Mapping[str, Any]) -> str:
        """Publish the state after `round_` and return its full name. Readers see all of it or nothing."""
        name = _file_name(round_)
        with self._reachable(f"{name} can't be written"), self._workspace() as folder:
            path = Path(folder) / name
            # What is uploaded and then removed need not reach this disk.
            write_state(path, tensors, dict(header) | {"round": round_}, durable=self.local)
            self._publish(path, name)
        return self.name(name)

    def put_file(self, path: Path, name: str) -> None:
        """Publish a copy of a local file under `name`."""
        with self._workspace() as folder:
            self._publish(Path(shutil.copy(path, folder)), name)

    def _workspace(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for unfinished files; beside their place where that is local, so that they can be renamed."""
        return tempfile.TemporaryDirectory(dir=self.root if self.local else None, prefix=_TEMPORARY)

    def _publish(self, path: Path, name: str) -> None:
        """Give a finished file its name: by one rename, or by one upload."""
        if self.local:
            os.replace(path, Path(self.root) / name)
            _sync(Path(self.root))
        else:
            self.fs.put_file(str(path), f"{self.root}/{name}")

    def put_folder(self, folder: Path, name: str, last: str) -> str:
        """Publish the files of a finished local folder. The file `last` comes last: with it, all are there."""
        target = f"{self.root}/{name}"
        with self._reachable(f"{name} can't be written"):
            if self.fs.exists(f"{target}/{last}"):
                self.fs.rm_file(f"{target}/{last}")
            self.fs.makedirs(target, exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda p: p.name == last):
                self.fs.put_file(str(path), f"{target}/{path.name}")
                if self.local:
                    _sync(Path(target) / path.name)
        return self.name(name)

    def sizes(self, name: str) -> dict[str, int]:
        """The files of a subfolder, with their sizes in bytes; none where there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{name}", detail=True)
        except FileNotFoundError:
            return {}
        return {file["name"].rsplit("/", 1)[-1]: file["size"] for file in found}

    def read(self, name: str) -> bytes | None:
        """The content of a file in the folder; `None` where there is no such file."""
        with self._reachable("it can't be read"):
            self.fs.invalidate_cache()
            try:
                content: bytes = self.fs.cat_file(f"{self.root}/{name}")
            except (FileNotFoundError, IsADirectoryError):
                return None
            return content

    def read_json(self, name: str) -> Any:
        """The content of a JSON file in the folder; `None` where there is no such file, or none that can be read."""
        content = self.read(name)
        try:
            return None if content is None else json.loads(content)
        except (ValueError, RecursionError):
            return None

    def write_json(self, name: str, value: Any) -> None:
        """Publish a small JSON file."""
        with self._workspace() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(value))
            self._publish(path, name)

    def remove(self, name: str) -> None:
        """Remove a file from the folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")

    def newest(self) -> tuple[Arrays, dict[str, Any], list[str]] | None:
        """The newest sound checkpoint, and what is wrong with newer ones, which `set_aside` takes away.

        Raises `UserError` where there are checkpoints, but none is sound: to start anew would bury them.
        """
        damaged: list[str] = []
        with self._reachable("it can't be read"):
            for round_ in self.rounds():
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / _file_name(round_)
                    self.fs.get_file(f"{self.root}/{path.name}", str(path))
                    try:
                        if path.is_dir():
                            raise Damaged("it is a folder")
                        tensors, header = read_state(path)
                        if header.get("round") != round_:
                            raise Damaged(f"it was written as that of round {header.get('round')}")
                        return tensors, header, damaged
                    except Damaged as error:
                        damaged.append(f"{path.name} is damaged ({error})")
        if damaged:
            raise UserError(
                f"checkpoints_dir={self.url}: no checkpoint in it is sound: {'; '.join(damaged)}. "
                "Restore one, or choose another folder to start anew"
            )
        return None

    def set_aside(self, before: int) -> None:
        """Rename the checkpoints of rounds after `before`, so that they don't count any more."""
        for round_ in self.rounds():
            if round_ > before:
                self.fs.mv(f"{self.root}/{_file_name(round_)}", f"{self.root}/{_file_name(round_)}.damaged")

    @contextlib.contextmanager
    def _reachable(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each file system has its own
            raise UserError(
                f"checkpoints_dir={self.url}: {what} ({type(error).__name__}: {error}); "
                "check the place, its permissions and the credentials"
            ) from error


def _file_name(round_: int) -> str:
    return f"round-{round_:06d}.safetensors"


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's renames, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
