"""The files that a configuration key names: paths, URLs, patterns and lists of them."""

import glob
import os

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from scaling_fl.errors import UserError


def expand(paths: str, key: str) -> list[str]:
    """The files that a configuration key names: one, several separated by commas, or a pattern with * ? [].

    Raises `UserError` if there are none, or if a file is named twice.
    """
    files = []
    for path in _separate(paths):
        is_url = path.startswith(("http://", "https://"))  # there, ? begins the query
        if is_url or not glob.has_magic(path) or os.path.exists(os.path.expanduser(path)):
            files.append(path)
            continue
        try:
            fs, pattern = file_system(_pattern(path))
            found = sorted(name for name, info in fs.glob(pattern, detail=True).items() if info["type"] == "file")
        except Exception as error:  # every file system raises its own exceptions
            raise UserError(
                f"{key}={path!r}: cannot list it: {type(error).__name__}: {error}; check the path"
            ) from error
        if not found:
            raise UserError(f"{key}={path!r}: no file matches this pattern; check the folder and the pattern")
        files += [fs.unstrip_protocol(name) if "://" in path else name for name in found]
    if not files:
        raise UserError(f"{key}={paths!r}: it names no file; give a path or a pattern")
    places = [place(path) for path in files]
    for number, path in enumerate(files):
        if places[number] in places[:number]:
            raise UserError(f"{key}={paths!r}: it names {path} twice; leave one out")
    return files


def _separate(paths: str) -> list[str]:
    """The paths in a list separated by commas. A name that exists may itself contain commas: the longest one counts."""
    parts, separate = paths.split(","), list[str]()
    while parts:
        joined = (",".join(parts[:number]).strip() for number in range(len(parts), 0, -1))
        path = next(filter(_is_there, joined), parts[0].strip())
        del parts[: path.count(",") + 1]
        if path:
            separate.append(path)
    return separate


def _is_there(path: str) -> bool:
    """Whether a file has this name, or, if it is a pattern, its folder exists."""
    folder, name = os.path.split(os.path.expanduser(path))
    return bool(path) and (
        os.path.exists(os.path.join(folder, name))
        or ("," not in name and glob.has_magic(name) and os.path.isdir(folder))
    )


def _pattern(path: str) -> str:
    """The pattern, with * ? [] taken literally in the name of its folder if that folder exists."""
    folder, name = os.path.split(path)
    return os.path.join(glob.escape(folder), name) if os.path.isdir(os.path.expanduser(folder)) else path


def file_system(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a path or URL, and the place in it. In local paths, `::` has no special meaning."""
    if "://" in path:
        found: tuple[AbstractFileSystem, str] = fsspec.url_to_fs(path)
        return found
    return LocalFileSystem(), LocalFileSystem._strip_protocol(path)


def place(path: str) -> str:
    """The canonical form of a local path; URLs are returned unchanged."""
    return path if "://" in path else os.path.realpath(os.path.expanduser(path))
