"""Files in a local folder or an object store, published whole or not at all."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from scaling_fl.checkpoint.retries import retry
from scaling_fl.errors import UserError

_TEMPORARY = ".partial-"  # never listed as a checkpoint

OnProgress = Callable[[], None]  # called now and then during a transfer


def no_progress() -> None:
    pass


class Storage:
    """A folder that the key `key` names, usually `checkpoints_dir`: a local path, or any URL that fsspec can write to."""

    def __init__(self, url: str, key: str = "checkpoints_dir"):
        self._key = key
        try:
            self.fs, root = _open(url)
        except (ValueError, ImportError) as error:
            raise UserError(f"{key}={url!r}: {error}; give a folder, s3://… or gs://…") from error
        self.url, self.local = url.rstrip("/"), isinstance(self.fs, LocalFileSystem)
        if "s3" in self.fs.protocol and "//" in root:  # s3fs lists s3://bucket/key for s3://bucket//key
            bucket, _, key = root.partition("/")
            root = f"{bucket}/{key.lstrip('/')}"
            self.url = f"s3://{root}".rstrip("/")
        self.root = root.rstrip("/") or root

    def url_of(self, name: str) -> str:
        """The full name of a file in the folder, as the user would type it."""
        return f"{self.url}/{name}"

    def exists(self) -> bool:
        """Whether there is such a folder; object stores have no folders, and any name will do."""
        return not self.local or Path(self.root).is_dir()

    def probe(self) -> None:
        """Write, list and remove a small file, and remove what killed runs left. Raises `UserError` if that fails.

        A folder whose listing lacks what was written there would be taken for empty: the job would start again.
        """
        name, content = f"{_TEMPORARY}probe-{uuid.uuid4().hex}", b"scaling_fl"
        with self._as_user_error("cannot write to it"):
            self.fs.makedirs(self.root, exist_ok=True)
            self.remove_partial_files()
            self.fs.pipe_file(f"{self.root}/{name}", content)
            found = self.sizes().get(name) == len(content) and self.read(name) == content
            self.remove(name)
        if not found:
            raise UserError(
                f"{self._key}={self.url}: a file that was written there is not found by listing the folder; choose "
                "a path of letters, digits, '-', '_', '.' and single slashes"
            )

    def remove_partial_files(self) -> None:
        """Remove the unfinished files of killed processes."""
        if self.local:
            for stale in Path(self.root).glob(f"{_TEMPORARY}*"):
                shutil.rmtree(stale, ignore_errors=True) if stale.is_dir() else stale.unlink(missing_ok=True)

    def sizes(self, name: str = "") -> dict[str, int]:
        """The files of the folder or a subfolder, with their sizes in bytes; empty if the folder doesn't exist."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(f"{self.root}/{name}".rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        return {file["name"].rsplit("/", 1)[-1]: file["size"] for file in found if file["type"] != "directory"}

    def read(self, name: str) -> bytes | None:
        """The content of a file in the folder; `None` if the file doesn't exist."""
        with self._as_user_error("cannot read it"):
            self.fs.invalidate_cache()
            try:
                content: bytes = self.fs.cat_file(f"{self.root}/{name}")
            except (FileNotFoundError, IsADirectoryError):
                return None
            return content

    def read_json(self, name: str) -> Any:
        """The content of a JSON file in the folder; `None` if the file doesn't exist or isn't JSON."""
        content = self.read(name)
        try:
            return None if content is None else json.loads(content)
        except (ValueError, RecursionError):
            return None

    def fetch_all(self, folder: Path) -> None:
        """Copy the folder's files to a local folder. Raises `UserError` if there are none."""
        with self._as_user_error("cannot read it"):
            names = list(self.sizes())
            for name in names:
                self.fs.get_file(f"{self.root}/{name}", str(folder / name))
        if not names:
            raise UserError(f"{self._key}={self.url}: there are no files; correct the path")

    def write(self, name: str, content: bytes) -> None:
        """Publish a small file."""
        with self._as_user_error(f"cannot write {name}"), self._workspace() as folder:
            path = Path(folder) / name
            path.write_bytes(content)
            self._publish(path, name)

    def write_json(self, name: str, value: Any) -> None:
        """Publish a small JSON file."""
        self.write(name, json.dumps(value).encode())

    def remove(self, name: str) -> None:
        """Remove a file from the folder, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file of the folder. (fsspec's `mv` would take [ and * in the path for patterns.)"""
        with self._as_user_error(f"cannot rename {name}"):
            if self.local:
                os.replace(f"{self.root}/{name}", f"{self.root}/{new_name}")
            else:
                self.fs.cp_file(f"{self.root}/{name}", f"{self.root}/{new_name}")
                self.fs.rm_file(f"{self.root}/{name}")

    def publish_file(self, path: Path, name: str) -> None:
        """Publish a copy of a local file as `name`."""
        with self._workspace() as folder:
            self._publish(Path(shutil.copyfile(path, Path(folder) / path.name)), name)

    def publish_folder(self, folder: Path, name: str, last: str, on_progress: OnProgress = no_progress) -> str:
        """Publish the files of a local folder, its subfolders' first, and `last` at the end: it says that all are there.

        Returns the full name. Transient errors are retried for a few minutes, then raised as `UserError`.
        """

        def publish() -> None:
            if self.fs.exists(f"{self.root}/{name}/{last}"):
                self.fs.rm_file(f"{self.root}/{name}/{last}")
            files = [path for path in folder.rglob("*") if path.is_file()]
            for path in sorted(files, key=lambda p: (p.parent == folder, p.name == last)):
                inside = path.relative_to(folder)
                self.fs.makedirs(f"{self.root}/{name}/{inside.parent}".removesuffix("/."), exist_ok=True)
                with self._workspace() as space:
                    copy = Path(shutil.copyfile(path, Path(space) / path.name)) if self.local else path
                    self._publish(copy, f"{name}/{inside}", on_progress)

        with self._as_user_error(f"cannot write {name}"):
            retry(publish, self.fs, on_progress)
        return self.url_of(name)

    def _workspace(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for unfinished files; inside a local folder, so that a rename publishes them atomically."""
        return tempfile.TemporaryDirectory(dir=self.root if self.local else None, prefix=_TEMPORARY)

    def _publish(self, path: Path, name: str, on_progress: OnProgress = no_progress) -> None:
        """Publish a finished file: on a disk by an atomic rename after fsync, elsewhere by one upload."""
        if self.local:
            target = Path(self.root) / name
            _sync(path)
            os.replace(path, target)
            _sync(target.parent)
            on_progress()
        else:
            self.fs.put_file(str(path), f"{self.root}/{name}", callback=_ProgressCallback(on_progress))

    def _as_user_error(self, failure: str) -> contextlib.AbstractContextManager[None]:
        return storage_errors(f"{self._key}={self.url}", failure)


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a local path or URL, and the folder in it. Raises `ValueError` or `ImportError`."""
    protocol = url.partition("://")[0] if "://" in url else "file"
    if "://" not in url and (typo := re.match(r"(\w+):/", url)) and typo[1] in fsspec.available_protocols():
        raise ValueError(f"expected two slashes after {typo[1]}:")
    # Uploading a part must finish within s3fs's read time-out: 15 s, too short on a slow line.
    options = {"config_kwargs": {"read_timeout": 120}} if protocol == "s3" else {}
    if "::" in protocol:
        return fsspec.url_to_fs(url, **options)  # type: ignore[no-any-return]
    # `url_to_fs` would take a :: within the path for a chain of file systems.
    kind = fsspec.get_filesystem_class(protocol)
    return kind(**kind._get_kwargs_from_urls(url), **options), kind._strip_protocol(url)


@contextlib.contextmanager
def storage_errors(place: str, failure: str) -> Iterator[None]:
    """Turn the errors of a file system into `UserError`: the place, what failed, why, and what to check."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every file system raises its own exceptions
        raise UserError(
            f"{place}: {failure} ({type(error).__name__}: {error}); "
            "check the path or URL, free space, permissions and credentials"
        ) from error


class _ProgressCallback(Callback):  # type: ignore[misc]
    """Called by fsspec as bytes are sent."""

    def __init__(self, on_progress: OnProgress):
        super().__init__()
        self._on_progress = on_progress

    def call(self, *_: Any, **__: Any) -> None:
        self._on_progress()


def _sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
