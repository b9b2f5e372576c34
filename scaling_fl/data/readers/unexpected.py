"""Files that are not what their names say: another format, or a CSV file with another separator."""

import json
import re
from collections.abc import Iterable

from scaling_fl.errors import UserError
from scaling_fl.text import is_text, one_line

PARQUET, CSV, TSV, JSON_LINES = "Parquet", "CSV", "TSV", "one JSON object per line"

_SEPARATORS = {  # each with its name and the remedy if a file has it unexpectedly
    ";": ("semicolons", "save it with commas"),
    "\t": ("tabs", "name it .tsv"),
    "|": ("vertical bars", "save it with commas"),
    ",": ("commas", "name it .csv"),
}
_AS_CSV = "save the sheet as CSV in UTF-8"
_OTHER_FORMATS = (  # how a file of another format begins; bytes that are not UTF-8 are surrogates
    ("PK\3\4", "an Excel workbook or a zip archive", f"{_AS_CSV}, or unpack the archive"),
    ("\udcd0\udccf\x11", "an Excel workbook", _AS_CSV),
    ("PAR1", "Parquet", "name it .parquet"),
    ("\x1f\udc8b", "gzip", "add .gz to its name"),
    ("\udcfd7zXZ", "xz", "add .xz to its name"),
    ("BZh", "bzip2", "add .bz2 to its name"),
    ("\udcff\udcfe", "UTF-16", "save the file as UTF-8"),
    ("\udcfe\udcff", "UTF-16", "save the file as UTF-8"),
    ("%PDF-", "a PDF document", "name a file of rows"),
    ("<!doctype", "a web page", "download the file itself"),
    ("<html", "a web page", "download the file itself"),
    ("version https://git-lfs", "a Git LFS pointer", "fetch the file with git lfs pull"),
)


# How JSON begins. A column of a CSV file may be called {name} or [name], as SQL Server writes them.
_JSON = re.compile(r"""\{\s*("|\}|$)|\[\s*([\[{"]|$)""")


def head(lines: Iterable[str], path: str, expected: str) -> list[str]:
    """The lines of a file up to the first that isn't blank. Raises `UserError` as `check_start`."""
    found = []
    for line in lines:
        found.append(line)
        if line.strip():
            check_start(path, len(found), line, expected)
            break
    return found


def check_start(path: str, row: int, first: str, expected: str) -> None:
    """Raise `UserError` if a file's start, from the first line that isn't blank, shows another format than `expected`."""
    line = first.strip("\ufeff \t\r\n").partition("\n")[0].rstrip()
    if (other := _other_format(line, expected)) is not None:
        found, remedy = other
        expected = expected if expected == PARQUET else "text"
    else:
        found, remedy = _json(line, expected) or ("", "")
    if not found and expected == PARQUET and is_text(first) and not line.startswith("PAR1"):
        found, remedy = "text", "name it .csv, .tsv or .jsonl, whichever it is"
    if not found and expected == JSON_LINES and line[:1] != "{" and not _is_json(line):
        kind = TSV if "\t" in line else CSV
        found, remedy = ascii(one_line(line, 60)), f"if it is {kind}, name it .{kind.lower()}"
    if found:
        raise UserError(f"{path}, row {row}: expected {expected}, found {found}; {remedy}")


def _other_format(line: str, expected: str) -> tuple[str, str] | None:
    for start, found, remedy in _OTHER_FORMATS:
        if line[: len(start)].lower() == start.lower() and found != expected:
            return found, "unpack it" if expected == PARQUET and remedy.startswith("add ") else remedy
    return None


def _json(line: str, expected: str) -> tuple[str, str] | None:
    name_it = ", and name it .jsonl" * (expected != JSON_LINES)
    if _JSON.match(line) is None:
        return None
    if line[0] == "[":
        return "a JSON array", f"write one object per line, for example with jq -c '.[]'{name_it}"
    if line == "{":
        return "a JSON object over several lines", f"write one object per line, for example with jq -c '.'{name_it}"
    return None if expected == JSON_LINES else ("JSON lines", "name it .jsonl")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def check_separator(path: str, separator: str, record: list[str], wanted: list[str], num_fields: int) -> None:
    """Raise `UserError` if the first record has the wanted columns, or `num_fields` fields, with another separator."""
    if num_fields == len(record) or set(wanted) <= set(record):
        return
    line = separator.join(record)
    for other, (name, remedy) in _SEPARATORS.items():
        fields = [field.strip().strip('"') for field in line.split(other)]
        if other != separator and (set(wanted) <= set(fields) or len(fields) == num_fields > 1):
            raise UserError(
                f"{path}, row 1: its fields seem to be separated by {name}, not by {_SEPARATORS[separator][0]}; {remedy}"
            )
