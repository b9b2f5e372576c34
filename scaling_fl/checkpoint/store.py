"""Checkpoints: the server state after a round, on disk or in an object store; published whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from scaling_fl.checkpoint.retries import retry
from scaling_fl.errors import UserError
from scaling_fl.state_file import Arrays, Damaged, read_state, write_state

_NAME = re.compile(r"round-(\d{6,})\.safetensors")
_TEMPORARY = ".partial-"  # never listed as a checkpoint

OnProgress = Callable[[], None]  # called now and then while something is on its way


def _no_progress() -> None:
    pass


class Checkpoints:
    """The folder `checkpoints_dir`: a local path, or any URL that fsspec writes to."""

    def __init__(self, url: str):
        try:
            # s3fs gives an answer 15 s, in which a part of an upload must go out, too: too few on a slow line.
            options = {"config_kwargs": {"read_timeout": 120}} if url.startswith("s3://") else {}
            self.fs, root = fsspec.url_to_fs(url, **options)
            self.root = root.rstrip("/") or root
        except (ValueError, ImportError) as error:
            raise UserError(f"checkpoints_dir={url!r}: {error}; give a folder, s3://… or gs://…") from error
        self.url, self.local = url.rstrip("/"), isinstance(self.fs, LocalFileSystem)

    def url_of(self, file: str) -> str:
        """The full name of a file in the folder, as the user would type it."""
        return f"{self.url}/{file}"

    def rounds(self) -> list[int]:
        """Rounds with a checkpoint, newest first. Other files in the folder don't count."""
        names = self.sizes()
        numbers = [int(match[1]) for match in map(_NAME.fullmatch, names) if match]
        # Digits have other forms, and numbers may begin with zeros: only the name that `save` gives counts.
        return sorted((number for number in numbers if _file_name(number) in names), reverse=True)

    def probe(self) -> None:
        """Write and remove a small file; clear away what a killed run left half-written. Raises `UserError`."""
        probe = f"{self.root}/{_TEMPORARY}probe-{uuid.uuid4().hex}"
        with self._as_user_error("it can't be written to"):
            self.fs.makedirs(self.root, exist_ok=True)
            self.remove_partial_files()
            self.fs.pipe_file(probe, b"scaling_fl")
            self.fs.rm_file(probe)

    def remove_partial_files(self) -> None:
        """Remove what a killed process left half-written."""
        if self.local:
            for stale in Path(self.root).glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)

    def save(
        self, round_: int, tensors: Arrays, header: Mapping[str, Any], on_progress: OnProgress = _no_progress
    ) -> str:
        """Publish the state after `round_` and return its full name. Readers see all of it or nothing.

        An object store that can't be reached, or is busy, is tried again for some minutes. Raises `UserError`.
        """
        name = _file_name(round_)
        with self._as_user_error(f"{name} can't be written"), self._workspace() as folder:
            path = Path(folder) / name
            write_state(path, tensors, dict(header) | {"round": round_})
            retry(lambda: self._publish(path, name, on_progress), self.fs, on_progress)
        return self.url_of(name)

    def publish_file(self, path: Path, name: str) -> None:
        """Publish a copy of a local file under `name`."""
        with self._workspace() as folder:
            self._publish(Path(shutil.copyfile(path, Path(folder) / path.name)), name)

    def publish_folder(self, folder: Path, name: str, last: str, on_progress: OnProgress = _no_progress) -> str:
        """Publish the files of a finished local folder. The file `last` comes last: with it, all are there.

        As patient as `save`. Raises `UserError`.
        """

        def put() -> None:
            if self.fs.exists(f"{self.root}/{name}/{last}"):
                self.fs.rm_file(f"{self.root}/{name}/{last}")
            self.fs.makedirs(f"{self.root}/{name}", exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda p: p.name == last):
                with self._workspace() as space:
                    copy = Path(shutil.copyfile(path, Path(space) / path.name)) if self.local else path
                    self._publish(copy, f"{name}/{path.name}", on_progress)

        with self._as_user_error(f"{name} can't be written"):
            retry(put, self.fs, on_progress)
        return self.url_of(name)

    def prune(self, keep: int, best: int | None) -> str | None:
        """Remove all checkpoints but the newest `keep` (0: all stay) and that of round `best`.

        Returns what stood in the way: too many checkpoints are no reason to end a job.
        """
        try:
            for round_ in self.rounds()[keep:] if keep else ():
                if round_ != best:
                    self.fs.rm_file(f"{self.root}/{_file_name(round_)}")
        except Exception as error:  # each file system has its own
            return f"checkpoints_dir={self.url}: old ones can't be removed ({type(error).__name__}: {error})"
        return None

    def _workspace(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for unfinished files; beside their place where that is local, so that they can be renamed."""
        return tempfile.TemporaryDirectory(dir=self.root if self.local else None, prefix=_TEMPORARY)

    def _publish(self, path: Path, name: str, on_progress: OnProgress = _no_progress) -> None:
        """Give a finished file its name: by one rename, when all of it is on the disk, or by one upload."""
        if self.local:
            target = Path(self.root) / name
            _sync(path)
            os.replace(path, target)
            _sync(target.parent)
            on_progress()
        else:
            self.fs.put_file(str(path), f"{self.root}/{name}", callback=_ProgressCallback(on_progress))

    def sizes(self, name: str = "") -> dict[str, int]:
        """The files of the folder, or of a subfolder, with their sizes in bytes; none where there is no such folder."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{name}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        return {file["name"].rsplit("/", 1)[-1]: file["size"] for file in found if file["type"] != "directory"}

    def read(self, name: str) -> bytes | None:
        """The content of a file in the folder; `None` where there is no such file."""
        with self._as_user_error("it can't be read"):
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
        with self._as_user_error(f"{name} can't be written"), self._workspace() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(value))
            self._publish(path, name)

    def remove(self, name: str) -> None:
        """Remove a file from the folder, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")

    def fetch_newest(self, path: Path) -> tuple[Arrays, dict[str, Any], list[str]] | None:
        """Copy the newest sound checkpoint to `path`; tensors, header, and what is wrong with newer ones.

        Those are there until `set_aside` takes them away.
        Raises `UserError` where there are checkpoints, but none is sound: to start anew would bury them.
        """
        damaged: list[str] = []
        with self._as_user_error("it can't be read"):
            for round_ in self.rounds():
                name = _file_name(round_)
                self.fs.get_file(f"{self.root}/{name}", str(path))
                try:
                    if path.is_dir():
                        path.rmdir()
                        raise Damaged("it is a folder")
                    tensors, header = read_state(path)
                    if header.get("round") != round_:
                        raise Damaged(f"it was written as that of round {header.get('round')}")
                    return tensors, header, damaged
                except Damaged as error:
                    damaged.append(f"{name} is damaged ({error})")
        if damaged:
            raise UserError(
                f"checkpoints_dir={self.url}: no checkpoint in it is sound: {'; '.join(damaged)}. "
                "Restore one, or choose another folder to start anew"
            )
        return None

    def set_aside(self, newer_than: int) -> None:
        """Rename the checkpoints of rounds after `before`, so that they don't count any more."""
        for round_ in self.rounds():
            if round_ > newer_than:
                self.fs.mv(f"{self.root}/{_file_name(round_)}", f"{self.root}/{_file_name(round_)}.damaged")

    @contextlib.contextmanager
    def _as_user_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # each file system has its own
            raise UserError(
                f"checkpoints_dir={self.url}: {what} ({type(error).__name__}: {error}); "
                "check the place, its free space, its permissions and the credentials"
            ) from error


class _ProgressCallback(Callback):  # type: ignore[misc]
    """What fsspec calls as bytes go out."""

    def __init__(self, on_progress: OnProgress):
        super().__init__()
        self._on_progress = on_progress

    def call(self, *_: Any, **__: Any) -> None:
        self._on_progress()


def _file_name(round_: int) -> str:
    return f"round-{round_:06d}.safetensors"


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's renames, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
