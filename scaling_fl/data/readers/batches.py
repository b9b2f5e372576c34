"""Rows of a file in batches, by column: what every format is read as."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

# Names of wanted columns → the configuration key that names them, or None if the task's format defines them.
Wanted = Mapping[str, str | None]
# A row's number and its wanted values; None for a blank line. Numbers start at 1 and include header and blank lines, as in
# a spreadsheet.
Row = tuple[int, list[Any] | None]

_SIZE = 1000  # rows of formats that are read row by row


class Batch(NamedTuple):
    """N rows of a file."""

    columns: dict[str, list[Any]]  # the wanted columns, N values each; none before the header is read
    numbers: Sequence[int] = ()  # (N,) of the rows
    num_blank: int = 0  # blank lines among the rows


def batched(names: Sequence[str], rows: Iterator[Row]) -> Iterator[Batch]:
    """Rows with values of the columns `names`, by column."""
    while chunk := list(itertools.islice(rows, _SIZE)):
        filled = [(number, values) for number, values in chunk if values is not None]
        columns = map(list, zip(*(values for _, values in filled), strict=True))
        numbers = [number for number, _ in filled]
        yield Batch(dict(zip(names, columns, strict=bool(filled))), numbers, len(chunk) - len(filled))
