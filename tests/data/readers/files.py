"""Files of rows, written byte by byte and read as tasks read them."""

from pathlib import Path
from typing import Any

from scaling_fl.data.readers import tables

WANTED = {"text": "text_column", "label": "label_column"}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def columns(path: str) -> dict[str, list[Any]]:
    return tables.read(path, "train_path", WANTED).columns


def texts_and_labels(path: str) -> tuple[list[str], list[str]]:
    table = tables.read(path, "train_path", WANTED)
    return table.texts("text"), table.labels("label")
