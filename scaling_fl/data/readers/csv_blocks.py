"""CSV parsed in blocks, many times faster than `csv.reader`; whatever is not plainly written is left to it.

Between the quotes of well-formed CSV, fields and what is outside them alternate. So one split at the quotes, and one of
the outside at commas and line breaks, yield the fields of many records, without a look at single characters. Blocks are
bytes, because those of quotes, commas and line breaks are never part of another character in UTF-8.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Taken(NamedTuple):
    """N whole records at the beginning of a block."""

    columns: list[list[str]]  # the wanted ones, N fields each
    length: int  # of the records in the block
    num_lines: int  # line breaks among them, as text files count them


def take(block: bytes, num_fields: int, wanted: Sequence[int], last: bool) -> Taken | None:
    """The fields of whole records at the beginning of `block`, by `wanted` column.

    `block` begins with a record of `num_fields` fields; `last`: it ends with one. None if `csv.reader(strict=True)` might
    read the text otherwise, refuse it, or find a blank line or a record with another number of fields; or if a wanted field
    is not UTF-8.
    """
    length = len(block)
    pieces = block.split(b'"')  # even: outside of quotes; odd: inside
    end = len(pieces) - 1
    if last:
        if end % 2:
            return None
        if block and block[-1] not in b"\n\r":
            pieces[end] += b"\n"
    else:
        end -= end % 2
        while end >= 0 and b"\n" not in pieces[end]:
            end -= 2
        if end < 0:
            return Taken([[] for _ in wanted], 0, 0)
        before, line_break, after = pieces[end].rpartition(b"\n")
        length -= len(after) + sum(len(piece) + 1 for piece in pieces[end + 1 :])
        pieces[end:] = [before + line_break]
    outside, inside = pieces[::2], pieces[1::2]
    if b"" in outside[1:-1]:
        outside, inside = _with_quotes(outside, inside)
    # A quoted field is a lone quote here: the outside has no others.
    marked = b'"'.join(outside)
    if b"\r" in marked:
        marked = marked.replace(b"\r\n", b"\n")
    all_quoted = b",".join([b'"'] * num_fields) + b"\n"
    fields = inside
    if marked != all_quoted * (len(inside) // num_fields):
        lines = marked.split(b"\n")
        lines.pop()
        fields = marked.replace(b"\n", b",").split(b",")
        fields.pop()
        if (
            b"\r" in marked
            or any(line.count(b",") != num_fields - 1 for line in lines)
            or (num_fields == 1 and b"" in lines)
            or fields.count(b'"') != len(inside)
        ):
            return None
        if inside:
            quoted = iter(inside)
            fields = [next(quoted) if field == b'"' else field for field in fields]
    try:
        columns = [list(map(bytes.decode, fields[position::num_fields])) for position in wanted]
    except UnicodeDecodeError:
        return None
    return Taken(columns, length, _num_lines(block, length))


def _with_quotes(outside: list[bytes], inside: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Doubled quotes are quotes in a field: nothing is between the two."""
    between, fields, taken, last = outside[:1], list[bytes](), 0, len(inside)  # `taken`: of what is inside
    try:
        while True:
            start = outside.index(b"", taken + 1, last)
            end = start
            while end < last and not outside[end]:
                end += 1
            fields += inside[taken : start - 1]
            fields.append(b'"'.join(inside[start - 1 : end]))
            between += outside[taken + 1 : start]
            between.append(outside[end])
            taken = end
    except ValueError:  # no more
        return between + outside[taken + 1 :], fields + inside[taken:]


def _num_lines(block: bytes, length: int) -> int:
    count = int(np.count_nonzero(np.frombuffer(block, np.uint8, length) == ord("\n")))  # twice as fast as bytes.count
    if b"\r" in block:
        count += block.count(b"\r", 0, length) - block.count(b"\r\n", 0, length)
    return count
