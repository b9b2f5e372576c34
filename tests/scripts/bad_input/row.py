"""A row of a table of invalid input: it spoils one thing in a valid job or its folder, and has parts of the message."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

# The valid job, in a folder with these files and with `out`, which contains the checkpoint of its first round.
SOUND: dict[str, Any] = {
    "site_ids": [-1, -1], "num_rounds": 2, "task_name": "csv", "train_path": "train.csv", "test_path": "test.csv",
    "text_column": "body", "label_column": "topic", "model": "./model", "max_seq_len": 16, "batch_size": 8,
    "threads_per_site": 1, "job_name": "j",
}  # fmt: skip
CHECKPOINT = Path("out/round-000001.safetensors")
OUT = {"checkpoints_dir": "out"}
BY_COLUMN = {"partition": "column", "partition_column": "topic"}

Spoil = Callable[[], object]


class Row(NamedTuple):
    what: str
    says: tuple[str, ...]  # parts of the message: the thing and the remedy
    keys: Mapping[str, Any] = MappingProxyType({})  # that differ from the valid job's
    spoil: Spoil = lambda: None  # called in the job's folder


def table(*rows: Row) -> Any:
    return pytest.mark.parametrize("row", rows, ids=[row.what for row in rows])


def put(name: str, content: bytes | str) -> Spoil:
    return lambda: Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name: str) -> Spoil:
    """Truncate the file to half its size."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[: Path(name).stat().st_size // 2])


class Hostile:
    """Creates the folder `owned` if unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("owned",)
