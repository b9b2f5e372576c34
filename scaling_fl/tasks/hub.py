"""Any data set of the Hugging Face hub by name, or a folder that the package `datasets` saved. An optional extra."""

import os
from collections.abc import Sequence
from typing import Any

import huggingface_hub

from scaling_fl import hub
from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.tasks import Report, Task, csv, formats, tables

NEEDS = ("dataset", "text_column", "label_column")
TAKES = ("dataset_config", "train_split", "test_split", "text_pair_column")


def load(config: Config, report: Report) -> Task:
    try:
        import datasets
    except ImportError as error:
        raise UserError("task_name=hub needs the package datasets: ./run-local.sh -m pip install datasets") from error
    datasets.disable_progress_bars()
    try:
        splits = _load(datasets, str(config.dataset), config.dataset_config)
    except UserError:
        raise
    except Exception as error:  # whatever configurations, files and features can hold
        raise UserError(f"dataset={config.dataset}: it can't be loaded: {type(error).__name__}: {error}") from error
    train, names = _table(datasets, config, splits, "train_split")
    test, _ = _table(datasets, config, splits, "test_split")
    return csv.classification(config, train, test, f"train_split={config.train_split}", names)


def _load(datasets: Any, name: str, configuration: str | None) -> dict[str, Any]:
    """All splits: from a folder, from the hub, or from what the hub's library keeps on this disk."""
    folder = os.path.expanduser(name)
    if "://" in name or os.path.isdir(folder):
        try:
            loaded = datasets.load_from_disk(folder)
        except FileNotFoundError:  # not saved by `datasets`; it may hold files that it reads
            loaded = datasets.load_dataset(folder, configuration)
        return loaded if isinstance(loaded, dict) else {"train": loaded}
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"dataset={name}: there is no such folder; give a hub id, or a folder that `datasets` saved")
    try:
        hub.find("dataset", name, f"dataset={name}", "give a folder that `datasets` saved")
    except hub.Unreachable as unreachable:
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        try:
            return datasets.load_dataset(name, configuration)
        except Exception:
            raise unreachable from None
    return datasets.load_dataset(name, configuration)


def _table(datasets: Any, config: Config, splits: dict[str, Any], key: str) -> tuple[tables.Table, list[str] | None]:
    """The examples of a split or of parts of splits, and the labels' names if they have some beside their numbers."""
    spec, column = getattr(config, key), str(config.label_column)
    sizes = {name: len(split) for name, split in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except ValueError as error:
        raise UserError(
            f"{key}={spec}: {error}; write {key}=… with one of them, or a part such as train[:80%]"
        ) from error
    wanted = csv.columns(config)
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    files, names = list[tuple[str, Sequence[int]]](), None
    for part in parts:
        split = splits[part.splitname]
        where = f"dataset={config.dataset}, split {part.splitname}"
        formats.names(where, split.column_names, wanted)
        rows = range(part.from_, part.to)
        for name, items in split.select(rows).select_columns(list(wanted))[:].items():
            values[name] += items
        files.append((f"{where} (rows from 0)", rows))
        names = getattr(split.features[column], "names", None)
    if not any(values.values()):
        raise UserError(f"{key}={spec}: it holds not a single row")
    if names is not None:
        if -1 in values[column]:
            raise UserError(f"{key}={spec}: label -1, for rows whose labels are kept secret; take another split")
        values[column] = [label if label is None else names[label] for label in values[column]]
    return tables.Table(values, files), names
