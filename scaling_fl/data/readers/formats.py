"""Row readers of CSV, TSV, JSON lines and Parquet files on any file system of fsspec. Errors name file and row."""

import csv
import functools
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import fsspec
from fsspec.core import OpenFile
from fsspec.utils import infer_compression

from scaling_fl import host
from scaling_fl.data.readers.paths import file_system
from scaling_fl.data.readers.unexpected import CSV, JSON_LINES, PARQUET, TSV, check_separator, check_start
from scaling_fl.errors import UserError
from scaling_fl.text import NOT_TEXT, is_text

csv.field_size_limit(2**31 - 1)  # reviews can exceed the default of 131,072 characters

# Names of wanted columns → the configuration key that names them, or None if the task's format defines them.
Wanted = Mapping[str, str | None]
# A row's number and the values of its wanted columns; None for a blank line. The first item holds the columns' names.
# Numbers start at 1 and include header and blank lines, as in a spreadsheet.
Row = tuple[int, list[Any] | None]


OTHER_COLUMNS = "for a file with other columns, use task_name=csv text_column=… label_column=…"


def rows(path: str, key: str, wanted: Wanted, headerless: Sequence[str] | None = None) -> Iterator[Row]:
    """Read a file row by row; its extension determines its format.

    `headerless`: the columns of a CSV or TSV file that may lack a header; the first row is a header only if it consists
    of exactly these names. Raises `UserError` if the file can't be read or is malformed.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        raise UserError(f"{key}={path!r}: it is a folder; name the files in it, such as {path.rstrip('/')}/*.csv")
    if os.path.exists(local) and not os.path.isfile(local):  # opening a pipe could block for ever
        raise UserError(f"{key}={path!r}: it is a pipe or a device; name a file")
    name = path.lower().partition("?")[0] if "://" in path else path.lower()
    compression = infer_compression(name)
    if compression == "zip":
        raise UserError(
            f"{key}={path!r}: a zip archive may hold several files; unpack it, or compress each file with gzip (.csv.gz)"
        )
    ending = os.path.splitext(name.removesuffix(os.path.splitext(name)[1]) if compression else name)[1]
    try:
        if ending in (".parquet", ".pq"):
            with _open(path, "rb") as file:
                yield from _parquet(file, path, wanted)
            return
        tabs, lines = ending in (".tsv", ".tab"), ending in (".jsonl", ".ndjson", ".json")
        # Undecodable bytes become surrogates, so that errors can name their row.
        options = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n" if tabs or lines else ""}
        with _open(path, "rt", compression=compression, **options) as file:
            head = _head(file)
            first = head[-1] if head else ""
            if first.strip():
                check_start(path, len(head), first, JSON_LINES if lines else TSV if tabs else CSV)
            content = itertools.chain(head, file)
            if lines:
                yield from _json_lines(content, path, wanted)
            else:
                separated = [*wanted], len(headerless or ())
                records = (
                    _tsv(content)
                    if tabs
                    else _csv(content, path, functools.partial(check_separator, path, ",", [first.strip()], *separated))
                )
                yield from _select_columns(records, path, wanted, headerless, "\t" if tabs else ",")
    except UserError:
        raise
    except FileNotFoundError as error:
        what = f"there is no such file{host.did_you_mean(path)}"
        if "://" in path:
            what = "there is no such file, or it can't be reached"
        raise UserError(f"{key}={path!r}: {what}; check the path") from error
    except Exception as error:  # every file system and format raises its own exceptions
        raise UserError(
            f"{key}={path!r}: cannot read it: {type(error).__name__}: {error}; is it complete, and does its extension match its format?"
        ) from error


def _open(path: str, mode: str, **options: Any) -> OpenFile:
    return fsspec.open(path, mode, **options) if "://" in path else OpenFile(*file_system(path), mode, **options)


def _head(file: Iterable[str]) -> list[str]:
    """The lines up to the first that isn't blank."""
    head = []
    for line in file:
        head.append(line)
        if line.strip():
            break
    return head


def _csv(file: Iterable[str], path: str, check_first: Callable[[], None]) -> Iterator[Row]:
    """RFC 4180: fields with commas or line breaks are quoted, and quotes inside them doubled.

    `check_first` is called if the first record is malformed.
    """
    reader = csv.reader(file, strict=True)
    number = line = 0
    try:
        for number, record in enumerate(reader, 1):
            line = reader.line_num
            yield number, record
    except csv.Error as error:
        if number == 0:
            check_first()
        raise UserError(
            f"{path}, row {number + 1}, starting in line {line + 1}: {error} in line {reader.line_num}; a field that starts "
            "with a quote ends at the next undoubled quote, so double the quotes inside it"
        ) from error


def _tsv(file: Iterable[str]) -> Iterator[Row]:
    """Each line is a row, whatever quotes it holds: quotes around a whole field are removed, others are text.

    CSV writers set to tabs quote some fields; other programs never quote, and their texts may have unbalanced quotes.
    """
    for number, line in enumerate(file, 1):
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


def _select_columns(
    records: Iterator[Row], path: str, wanted: Wanted, headerless: Sequence[str] | None, separator: str
) -> Iterator[Row]:
    """The wanted columns' names, then the wanted fields of each record."""
    header: list[str] | None = None
    names = list(headerless or ())
    for number, record in records:
        if not record:
            yield number, None
            continue
        if header is None:
            if not all(map(is_text, record)):
                raise UserError(f"{path}, row {number}: {NOT_TEXT}")
            check_separator(path, separator, record, [*wanted], len(names))
            has_header = headerless is None or record == names
            if not has_header and len(record) != len(names):
                raise UserError(
                    f"{path}, row {number}: expected {len(names)} fields ({_listed(names)}), found {len(record)} "
                    f"({_listed(record)}); {OTHER_COLUMNS}"
                )
            header = record if has_header else names
            chosen = check_columns(path, header, wanted)
            positions = [header.index(name) for name in chosen]
            plain_header = [_plain(name) for name in header]
            yield 0, chosen
            if has_header:
                continue
        if _plain(record[0]) == plain_header[0] and list(map(_plain, record)) == plain_header:
            raise UserError(f"{path}, row {number}: it repeats the header; remove the row")
        if len(record) != len(header):
            raise UserError(
                f"{path}, row {number}: expected {len(header)} fields ({_listed(header)}), found {len(record)}"
            )
        yield number, [record[position] for position in positions]


def _json_lines(file: Iterable[str], path: str, wanted: Wanted) -> Iterator[Row]:
    chosen: list[str] | None = None
    for number, line in enumerate(file, 1):
        if not line.strip():
            yield number, None
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path}, row {number}: expected {JSON_LINES} ({error}); correct the row, or remove it"
            ) from error
        if not isinstance(record, dict):
            found = type(record).__name__
            raise UserError(
                f"{path}, row {number}: expected {JSON_LINES}, found one {found}; correct the row, or remove it"
            )
        if chosen is None:
            chosen = check_columns(path, list(record), wanted)
            yield 0, chosen
        try:
            yield number, [record[name] for name in chosen]
        except KeyError as error:
            raise UserError(f"{path}, row {number}: expected a field {error}, found {_listed(record)}") from error


def _parquet(file: IO[bytes], path: str, wanted: Wanted) -> Iterator[Row]:
    import pyarrow.parquet  # imported only when needed: it takes a tenth of a second

    start = file.read(1000).decode("utf-8", "surrogateescape")
    if not start:
        return
    check_start(path, 1, start[:-3], PARQUET)  # without the last character, which may be cut
    file.seek(0)
    table = pyarrow.parquet.ParquetFile(file)
    chosen = check_columns(path, table.schema_arrow.names, wanted)
    yield 0, chosen
    number = 0
    for batch in table.iter_batches(batch_size=1000, columns=chosen):
        for record in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
            number += 1
            yield number, list(record)


def check_columns(path: str, header: list[str], wanted: Wanted) -> list[str]:
    """The wanted columns' names. Raises `UserError` unless the header has each of them exactly once."""
    for name, key in wanted.items():
        if header.count(name) != 1:
            start = f"{path} has" if key is None else f"{key}={name!r}: {path} has"
            if name in header:
                raise UserError(f"{start} {header.count(name)} columns named {name}; rename one")
            found = _listed(header)
            alike = next((other for other in header if _plain(other) == _plain(name)), None)
            hint = "" if alike is None else f" (did you mean {alike!r}?)"
            remedy = f"choose from {found}" if key is not None else f"it has {found}; rename the one that is meant"
            raise UserError(f"{start} no column {_shown(name)}{hint}; {remedy}")
    return list(wanted)


def _plain(name: str) -> str:
    """What is left of a column's name if programs may change its case, quote it, or put a byte order mark before it."""
    return name.strip('\ufeff" \t\r\n').casefold()


def _shown(name: str) -> str:
    """The name, quoted if it is empty or has characters at its ends, or in it, that can't be seen."""
    return name if name and name == name.strip() and name.isprintable() else repr(name)


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(map(_shown, names))
    return (text if len(text) <= 300 else f"{text[:300]} …") or "none"
