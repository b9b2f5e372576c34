"""Reading CSV files strictly: what is wrong is named by file, row and column, and no row is dropped."""

import csv
from dataclasses import dataclass

import fsspec

from scaling_fl.errors import UserError

csv.field_size_limit(2**31 - 1)  # reviews can exceed the default of 131,072 characters


@dataclass(frozen=True)
class Table:
    """All records of a file. Row numbers in messages count from 1 and include a header and blank rows."""

    path: str
    header: list[str]
    records: list[list[str]]
    rows: list[int]  # the row number of each record

    def column(self, name: str, key: str) -> list[str]:
        """One column by its header name; `key` is the configuration key that asked for it."""
        if name not in self.header:
            raise UserError(f"{key}={name!r}: {self.path} has no such column; it has {', '.join(self.header)}")
        if self.header.count(name) > 1:
            raise UserError(
                f"{key}={name!r}: {self.path} has {self.header.count(name)} columns of this name; rename one"
            )
        position = self.header.index(name)
        return [record[position] for record in self.records]

    def labels(self, name: str, expected: set[str]) -> list[str]:
        """The column `name`, each value of which must be one of `expected`."""
        labels = self.column(name, "label_column")
        for row, label in zip(self.rows, labels, strict=True):
            if label not in expected:
                raise UserError(
                    f"{self.path}, row {row}, column {name}: expected {' or '.join(sorted(expected))}, found {label!r}"
                )
        return labels


def read(path: str | None, key: str, headerless: list[str] | None = None) -> Table:
    """Read a comma-separated UTF-8 file (RFC 4180 quoting; a byte-order mark is skipped; .gz, .xz, … are unpacked).

    `path`: any fsspec path; `key`: the configuration key that holds it. `headerless`: column names of a file
    that may come without a header; its first row is a header only if it consists of these names.
    """
    if path is None:
        raise UserError(f"{key}: this task needs it; write {key}=/path/to/file.csv (s3:// and gs:// work too)")
    records: list[list[str]] = []
    rows: list[int] = []
    try:
        # Undecodable bytes come through as surrogates, so that the row that holds them can be named.
        with fsspec.open(
            path, "rt", compression="infer", encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            reader = csv.reader(file, strict=True)
            try:
                for number, record in enumerate(reader, 1):
                    if record:  # blank rows are no records
                        records.append(record)
                        rows.append(number)
            except csv.Error as error:
                raise UserError(
                    f"{path}, line {reader.line_num}: {error}; quotes inside a quoted field are doubled"
                ) from error
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{key}={path!r}: there is no such file") from error
    except Exception as error:  # each file system has its own
        raise UserError(f"{key}={path!r}: it can't be read: {type(error).__name__}: {error}") from error

    if not records:
        raise UserError(f"{key}={path!r}: the file is empty")
    for number, record in zip(rows, records, strict=True):
        for position, field in enumerate(record, 1):
            if "\0" in field or (not field.isascii() and any("\udc80" <= char <= "\udcff" for char in field)):
                raise UserError(
                    f"{path}, row {number}, field {position}: it is not UTF-8 text; save the file as CSV in UTF-8"
                )
    if headerless is not None and records[0] != headerless:
        header = headerless
    else:
        header = records.pop(0)
        del rows[0]
    if not records:
        raise UserError(f"{key}={path!r}: it has a header, but not a single example")
    for number, record in zip(rows, records, strict=True):
        if len(record) != len(header):
            raise UserError(
                f"{path}, row {number}: expected {len(header)} fields ({', '.join(header)}), found {len(record)}"
            )
    return Table(path, header, records, rows)
