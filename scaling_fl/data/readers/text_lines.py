"""Plain text files: each line that isn't blank is a text."""

from array import array
from collections.abc import Sequence

import fsspec

from scaling_fl import host
from scaling_fl.data.readers.tables import Table
from scaling_fl.errors import UserError


def read_lines(paths: Sequence[str], key: str) -> Table:
    """The lines of the files that the configuration key `key` names, as the column "text". Raises `UserError`."""
    texts, files = list[str](), list[tuple[str, Sequence[int]]]()
    for path in paths:
        numbers = array("q")
        try:
            with fsspec.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape") as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        texts.append(line.rstrip("\r\n"))
                        numbers.append(number)
        except FileNotFoundError as error:
            raise UserError(
                f"{key}={path!r}: there is no such file{host.did_you_mean(path)}; correct the path"
            ) from error
        except Exception as error:  # every file system raises its own exceptions
            raise UserError(f"{key}={path!r}: cannot read it: {type(error).__name__}: {error}") from error
        if not numbers:
            raise UserError(f"{key}={path!r}: the file has no text; name another")
        files.append((path, numbers))
    return Table({"text": texts}, files)
