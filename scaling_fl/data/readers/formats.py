"""Readers of CSV, TSV, JSON lines and Parquet files on any file system of fsspec. Errors name file and row."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import fsspec
from fsspec.core import OpenFile
from fsspec.utils import infer_compression

from scaling_fl import host
from scaling_fl.data.readers.batches import Batch, Row, Wanted, batched
from scaling_fl.data.readers.columns import check_columns, listed
from scaling_fl.data.readers.paths import file_system
from scaling_fl.data.readers.separated import read_csv, read_tsv
from scaling_fl.data.readers.unexpected import JSON_LINES, PARQUET, TSV, check_start, head
from scaling_fl.errors import UserError


def batches(path: str, key: str, wanted: Wanted, headerless: Sequence[str] | None = None) -> Iterator[Batch]:
    """Read the rows of a file; its extension determines its format.

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
        if not (tabs or lines):
            with _open(path, "rb", compression=compression) as file:
                yield from read_csv(file, path, wanted, headerless)
            return
        # Undecodable bytes become surrogates, so that errors can name their row.
        options = {"encoding": "utf-8-sig", "errors": "surrogateescape", "newline": "\n"}
        with _open(path, "rt", compression=compression, **options) as file:
            content = itertools.chain(head(file, path, JSON_LINES if lines else TSV), file)
            if lines:
                yield from batched([*wanted], _json_lines(content, path, wanted))
            else:
                yield from read_tsv(content, path, wanted, headerless)
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


def _json_lines(file: Iterable[str], path: str, wanted: Wanted) -> Iterator[Row]:
    first = True
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
        if first:
            check_columns(path, list(record), wanted)
            first = False
        try:
            yield number, [record[name] for name in wanted]
        except KeyError as error:
            raise UserError(f"{path}, row {number}: expected a field {error}, found {listed(record)}") from error


def _parquet(file: IO[bytes], path: str, wanted: Wanted) -> Iterator[Batch]:
    import pyarrow.parquet  # imported only when needed: it takes a tenth of a second

    start = file.read(1000).decode("utf-8", "surrogateescape")
    if not start:
        return
    check_start(path, 1, start[:-3], PARQUET)  # without the last character, which may be cut
    file.seek(0)
    table = pyarrow.parquet.ParquetFile(file)
    check_columns(path, table.schema_arrow.names, wanted)
    yield Batch({name: [] for name in wanted})
    number = 1
    for batch in table.iter_batches(batch_size=10_000, columns=[*wanted]):
        numbers = range(number, number + batch.num_rows)
        yield Batch({name: batch.column(name).to_pylist() for name in wanted}, numbers)
        number = numbers.stop
