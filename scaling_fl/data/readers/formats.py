"""Files of rows: CSV, TSV, JSON lines, Parquet; one or several; wherever fsspec reads. What is wrong is named by row."""

import csv
import glob
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any

import fsspec
from fsspec.utils import infer_compression

from scaling_fl.errors import UserError
from scaling_fl.text import NOT_TEXT, is_text

csv.field_size_limit(2**31 - 1)  # reviews can exceed the default of 131,072 characters

# Names of wanted columns, with the configuration key that named them, or None where the task's files define them.
Wanted = Mapping[str, str | None]
# A row's number and the values of its wanted columns. The first one has the columns' names; None is a blank line.
# Numbers count from 1 and include header and blank lines, as a spreadsheet does.
Row = tuple[int, list[Any] | None]


def expand(paths: str, key: str) -> list[str]:
    """The files that a configuration key names: one, several with commas between them, or a pattern with * ? [].

    Raises `UserError` where there are none, or one is named twice.
    """
    if os.path.exists(os.path.expanduser(paths)):  # whatever characters its name has
        return [paths]
    files = []
    for path in filter(None, map(str.strip, paths.split(","))):
        if not glob.has_magic(path) or path.startswith(("http://", "https://")):  # where ? begins a query
            files.append(path)
            continue
        try:
            fs, pattern = fsspec.url_to_fs(path)
            found = sorted(name for name, info in fs.glob(pattern, detail=True).items() if info["type"] == "file")
        except Exception as error:  # each file system has its own
            raise UserError(f"{key}={path!r}: it can't be listed: {type(error).__name__}: {error}") from error
        if not found:
            raise UserError(f"{key}={path!r}: no file has a name like that")
        files += [fs.unstrip_protocol(name) if "://" in path else name for name in found]
    if not files:
        raise UserError(f"{key}={paths!r}: it names no file")
    places = [place(path) for path in files]
    for number, path in enumerate(files):
        if places[number] in places[:number]:
            raise UserError(f"{key}={paths!r}: it names {path} twice")
    return files


def place(path: str) -> str:
    """The same for all the ways to write a local path; a URL as it is."""
    return path if "://" in path else os.path.realpath(os.path.expanduser(path))


def rows(path: str, key: str, wanted: Wanted, headerless: Sequence[str] | None = None) -> Iterator[Row]:
    """Read a file row by row; the end of its name tells its format.

    `headerless`: the columns of a CSV or TSV file that may come without a header; its first row is a header only if
    it consists of these names. Raises `UserError` where the file is not what it should be.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        raise UserError(f"{key}={path!r}: it is a folder; name the files in it, such as {path.rstrip('/')}/*.csv")
    if os.path.exists(local) and not os.path.isfile(local):  # to open it might wait for ever
        raise UserError(f"{key}={path!r}: it is a pipe or a device; name a file")
    name = path.lower().partition("?")[0] if "://" in path else path.lower()
    compression = infer_compression(name)
    if compression == "zip":
        raise UserError(f"{key}={path!r}: a zip may hold many files; unpack it, or pack each file with gzip (.csv.gz)")
    ending = os.path.splitext(name.removesuffix(os.path.splitext(name)[1]) if compression else name)[1]
    try:
        if ending in (".parquet", ".pq"):
            with fsspec.open(path, "rb") as file:
                yield from _parquet(file, path, wanted)
            return
        tabs, lines = ending in (".tsv", ".tab"), ending in (".jsonl", ".ndjson", ".json")
        # Undecodable bytes come through as surrogates, so that the row that holds them can be named.
        options = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n" if tabs or lines else ""}
        with fsspec.open(path, "rt", compression=compression, **options) as file:
            if lines:
                yield from _json_lines(file, path, wanted)
            else:
                yield from _choose((_tsv if tabs else _csv)(file, path), path, wanted, headerless)
    except UserError:
        raise
    except FileNotFoundError as error:
        what = "there is no such file" if "://" not in path else "there is no such file, or it can't be reached"
        raise UserError(f"{key}={path!r}: {what}") from error
    except Exception as error:  # each file system and each format has its own
        raise UserError(
            f"{key}={path!r}: it can't be read: {type(error).__name__}: {error}; is it whole, and what its name says?"
        ) from error


def _csv(file: IO[str], path: str) -> Iterator[Row]:
    """RFC 4180: fields with commas or line breaks in quotes, and quotes in them doubled."""
    reader = csv.reader(file, strict=True)
    number = line = 0
    try:
        for number, record in enumerate(reader, 1):
            line = reader.line_num
            yield number, record
    except csv.Error as error:
        raise UserError(
            f"{path}, row {number + 1}, which begins in line {line + 1}: {error} in line {reader.line_num}; a quote at the "
            "beginning of a field opens it up to the next lone quote, and quotes inside such a field are doubled"
        ) from error


def _tsv(file: IO[str], path: str) -> Iterator[Row]:
    """A line is a row, whatever quotes it holds: those around a whole field are taken off, others are text.

    Writers of CSV that were told to use tabs quote some fields; others never do, and have quotes out of balance.
    """
    for number, line in enumerate(file, 1):
        line = line.removesuffix("\n").removesuffix("\r")
        fields = line.split("\t") if line else []
        if '"' in line:
            fields = [_unquoted(field) for field in fields]
        yield number, fields


def _unquoted(field: str) -> str:
    """The field without quotes that surround it as a writer of CSV sets them."""
    inner = field[1:-1]
    if len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field


def _choose(records: Iterator[Row], path: str, wanted: Wanted, headerless: Sequence[str] | None) -> Iterator[Row]:
    """The wanted fields of each record, and the header first."""
    header: list[str] | None = None
    for number, record in records:
        if not record:
            yield number, None
            continue
        if header is None:
            if not all(map(is_text, record)):
                raise UserError(f"{path}, row {number}: {NOT_TEXT}")
            named = headerless is None or record == list(headerless)
            header = record if named else list(headerless or ())
            chosen = names(path, header, wanted)
            positions = [header.index(name) for name in chosen]
            yield 0, chosen
            if named:
                continue
        if len(record) != len(header):
            raise UserError(
                f"{path}, row {number}: expected {len(header)} fields ({_listed(header)}), found {len(record)}"
            )
        yield number, [record[position] for position in positions]


def _json_lines(file: IO[str], path: str, wanted: Wanted) -> Iterator[Row]:
    chosen: list[str] | None = None
    for number, line in enumerate(file, 1):
        if not line.strip():
            yield number, None
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, row {number}: expected one JSON object per line ({error})") from error
        if not isinstance(record, dict):
            found = type(record).__name__
            raise UserError(f"{path}, row {number}: expected one JSON object per line, found one {found}")
        if chosen is None:
            chosen = names(path, list(record), wanted)
            yield 0, chosen
        try:
            yield number, [record[name] for name in chosen]
        except KeyError as error:
            raise UserError(f"{path}, row {number}: it has no {error}; it has {_listed(record)}") from error


def _parquet(file: IO[bytes], path: str, wanted: Wanted) -> Iterator[Row]:
    import pyarrow.parquet  # a tenth of a second, for those who need it

    table = pyarrow.parquet.ParquetFile(file)
    chosen = names(path, table.schema_arrow.names, wanted)
    yield 0, chosen
    number = 0
    for batch in table.iter_batches(batch_size=1000, columns=chosen):
        for record in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
            number += 1
            yield number, list(record)


def names(path: str, header: list[str], wanted: Wanted) -> list[str]:
    """The wanted columns' names, each of which the header must have once."""
    for name, key in wanted.items():
        if header.count(name) != 1:
            start = f"{path} has" if key is None else f"{key}={name!r}: {path} has"
            if name in header:
                raise UserError(f"{start} {header.count(name)} columns named {name}; rename one")
            raise UserError(f"{start} no column {name}; it has {_listed(header)}")
    return list(wanted)


def _listed(names: Iterable[str]) -> str:
    text = ", ".join(names)
    return (text if len(text) <= 300 else f"{text[:300]} …") or "none"
