"""Rows of CSV and TSV files, whose fields are named by a header or by the task. Errors name the row."""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

from scaling_fl.data.readers import csv_blocks
from scaling_fl.data.readers.batches import Batch, Row, Wanted, batched
from scaling_fl.data.readers.columns import check_columns, listed, plain
from scaling_fl.data.readers.source import Source
from scaling_fl.data.readers.unexpected import CSV, check_separator, head
from scaling_fl.errors import UserError
from scaling_fl.text import NOT_TEXT, is_text

csv.field_size_limit(2**31 - 1)  # reviews can exceed the default of 131,072 characters

OTHER_COLUMNS = "for a file with other columns, use task_name=csv text_column=… label_column=…"
_BLOCK = 2**17  # bytes read at once; a core's cache holds what they are split into
_LONGEST = 2**24  # bytes of a record that blocks are joined for


class Layout:
    """The fields of each row, and which of them are wanted."""

    def __init__(
        self, path: str, number: int, first: list[str], wanted: Wanted, headerless: Sequence[str] | None, separator: str
    ):
        """`first`: the first record that isn't blank, in row `number`; it is a header unless it need not be one.

        Raises `UserError` if it isn't text, or has other columns than those expected.
        """
        if not all(map(is_text, first)):
            raise UserError(f"{path}, row {number}: {NOT_TEXT}")
        names = list(headerless or ())
        check_separator(path, separator, first, [*wanted], len(names))
        self.has_header = headerless is None or first == names
        if not self.has_header and len(first) != len(names):
            raise UserError(
                f"{path}, row {number}: expected {len(names)} fields ({listed(names)}), found {len(first)} "
                f"({listed(first)}); {OTHER_COLUMNS}"
            )
        self.path, self.header = path, first if self.has_header else names
        check_columns(path, self.header, wanted)
        self.wanted = list(wanted)
        self.positions = [self.header.index(name) for name in wanted]
        self._plain = list(map(plain, self.header))

    def rows(self, records: Iterable[tuple[int, list[str]]]) -> Iterator[Row]:
        """The wanted fields of each record. Raises `UserError` at a record that repeats the header, or isn't like it."""
        for number, record in records:
            if not record:
                yield number, None
                continue
            if plain(record[0]) == self._plain[0] and list(map(plain, record)) == self._plain:
                raise UserError(f"{self.path}, row {number}: it repeats the header; remove the row")
            if len(record) != len(self.header):
                raise UserError(
                    f"{self.path}, row {number}: expected {len(self.header)} fields ({listed(self.header)}), found {len(record)}"
                )
            yield number, [record[position] for position in self.positions]

    def may_repeat_header(self, columns: list[list[str]]) -> bool:
        """Whether a value in the shortest of the wanted columns is its name."""
        shortest = min(range(len(columns)), key=lambda index: sum(map(len, columns[index][:5])))  # of the first values
        return self._plain[self.positions[shortest]] in set(map(plain, set(columns[shortest])))


class _CsvRecords:
    """RFC 4180: fields with commas or line breaks are quoted, and quotes inside them doubled. Counts rows and lines."""

    def __init__(
        self, lines: Iterable[str], path: str, check_first: Callable[[], None], number: int = 0, line: int = 0
    ):
        """`check_first` is called if the first record of the file is malformed; `number`, `line`: of those before."""
        self._reader, self._path, self._check_first = csv.reader(lines, strict=True), path, check_first
        self.number, self.line, self._lines_before = number, line, line

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        return self

    def __next__(self) -> tuple[int, list[str]]:
        try:
            record = next(self._reader)
        except csv.Error as error:
            if self.number == 0:
                self._check_first()
            raise UserError(
                f"{self._path}, row {self.number + 1}, starting in line {self.line + 1}: {error} in line "
                f"{self._lines_before + self._reader.line_num}; a field that starts with a quote ends at the next undoubled "
                "quote, so double the quotes inside it"
            ) from error
        self.number, self.line = self.number + 1, self._lines_before + self._reader.line_num
        return self.number, record


def read_csv(file: IO[bytes], path: str, wanted: Wanted, headerless: Sequence[str] | None) -> Iterator[Batch]:
    """The rows of a file. Raises `UserError`."""
    source = Source(file, keep=True)
    lines = source.lines()
    first = head(lines, path, CSV)
    left = iter(first)

    def check_first() -> None:
        check_separator(path, ",", [first[-1].strip()], [*wanted], len(headerless or ()))

    records = _CsvRecords(itertools.chain(left, lines), path, check_first)
    layout = None
    for number, record in records:
        if record:
            layout = Layout(path, number, record, wanted, headerless, ",")
            yield from _first(layout, number, record)
            break
    if layout is None:
        return
    block = "".join(left).encode("utf-8", "surrogateescape") + source.rest()
    number, line, more = records.number, records.line, b"more"
    while more:
        more = file.read(_BLOCK)
        block += more
        taken = None
        if len(block) <= _LONGEST:
            taken = csv_blocks.take(block, len(layout.header), layout.positions, last=not more)
        if taken is None or layout.may_repeat_header(taken.columns):
            # From here on, the careful reader: it knows what is right, and names what isn't.
            rest = Source(file, block).lines()
            yield from batched(layout.wanted, layout.rows(_CsvRecords(rest, path, check_first, number, line)))
            return
        numbers = range(number + 1, number + 1 + len(taken.columns[0]))
        yield Batch(dict(zip(layout.wanted, taken.columns, strict=True)), numbers)
        number += len(numbers)
        line += taken.num_lines
        block = block[taken.length :]


def read_tsv(lines: Iterable[str], path: str, wanted: Wanted, headerless: Sequence[str] | None) -> Iterator[Batch]:
    """The rows of lines of fields between tabs. Raises `UserError`."""
    records = _tsv(lines)
    for number, record in records:
        if record:
            layout = Layout(path, number, record, wanted, headerless, "\t")
            yield from _first(layout, number, record)
            yield from batched(layout.wanted, layout.rows(records))


def _first(layout: Layout, number: int, record: list[str]) -> Iterator[Batch]:
    """The first record, after blank lines, as rows."""
    yield Batch({name: [] for name in layout.wanted}, num_blank=number - 1)
    if not layout.has_header:
        yield from batched(layout.wanted, layout.rows([(number, record)]))


def _tsv(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Each line is a row, whatever quotes it holds: quotes around a whole field are removed, others are text.

    CSV writers set to tabs quote some fields; other programs never quote, and their texts may have unbalanced quotes.
    """
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        fields = line.split("\t") if line else []
        if '"' in line:
            fields = [_unquoted(field) for field in fields]
        yield number, fields


def _unquoted(field: str) -> str:
    """The field without surrounding quotes, if they are quotes as a CSV writer sets them."""
    inner = field[1:-1]
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field
