"""A file that is read as lines of text, or as bytes from some line on: text files read ahead of the lines they give."""

import io
from collections.abc import Iterator
from typing import IO

_BOM = b"\xef\xbb\xbf"
_AHEAD = 2**13  # bytes read at once for lines


class Source(io.RawIOBase):
    """The bytes `first`, and then those of `file`.

    Undecodable bytes become surrogates in lines, so that errors can name their row. Line breaks are kept as they are.
    """

    def __init__(self, file: IO[bytes], first: bytes = b"", keep: bool = False):
        """`keep`: the bytes begin a file, and `rest` is to be called once some lines were read."""
        self._file, self._first = file, io.BytesIO(first)
        self._kept: bytearray | None = bytearray() if keep else None
        self._length = 0  # bytes of the lines that were read
        self._encoding = "utf-8-sig" if keep else "utf-8"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """As `io.RawIOBase`."""
        count = self._first.readinto(buffer[:_AHEAD])
        if not count:
            data = self._file.read(min(len(buffer), _AHEAD))
            count = len(data)
            buffer[:count] = data
        if self._kept is not None:
            self._kept += buffer[:count]
        return count

    def lines(self) -> Iterator[str]:
        """The lines of the file."""
        text = io.TextIOWrapper(io.BufferedReader(self), self._encoding, "surrogateescape", newline="")
        for line in text:
            if self._kept is not None:
                self._length += len(line.encode("utf-8", "surrogateescape"))
            yield line

    def rest(self) -> bytes:
        """What was read of the file beyond the lines that were taken from `lines`, which ends with this call."""
        assert self._kept is not None
        return bytes(self._kept.removeprefix(_BOM)[self._length :])
