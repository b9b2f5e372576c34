"""The CSV file that a command writes (`csv_path`): a new file, complete or absent."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from scaling_fl.errors import UserError


def check_new(path: str | None) -> None:
    """Raise `UserError`, before any work is done, if `path` exists or can't be created."""
    if path is None:
        return
    file = Path(path).expanduser()
    if "://" in path:
        raise UserError(f"csv_path={path}: expected a local file; write there, and copy it")
    if file.exists():
        raise UserError(f"csv_path={path}: it exists; choose another name, or remove it")
    if not file.parent.is_dir():
        raise UserError(f"csv_path={path}: there is no folder {file.parent}; create it")
    if not os.access(file.parent, os.W_OK):
        raise UserError(f"csv_path={path}: cannot write to {file.parent}; check the permissions")


def write(path: str, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write the file under another name, and rename it once it is complete."""
    target = Path(path).expanduser()
    partial = target.with_name(f".{target.name}.partial")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        os.replace(partial, target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"csv_path={path}: cannot write it ({error}); check free space and permissions") from error
