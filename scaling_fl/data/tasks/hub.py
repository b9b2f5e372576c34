"""Any data set of the Hugging Face hub by name, or a folder that the package `datasets` saved. An optional extra."""

import os
from collections.abc import Sequence
from typing import Any

import huggingface_hub

from scaling_fl import hf_hub
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.readers import formats, tables
from scaling_fl.data.tasks import csv
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

NEEDS = ("dataset", "text_column", "label_column")
TAKES = ("dataset_config", "train_split", "test_split", "text_pair_column", "partition_column")


def load(config: Config, report: Report) -> Task:
    try:
        import datasets
    except ImportError as error:
        raise UserError("task_name=hub needs the package datasets: ./run-local.sh -m pip install datasets") from error
    datasets.disable_progress_bars()
    try:
        splits = _load(datasets, str(config.dataset), config.dataset_config)
        (train, names), (test, _) = (_table(datasets, config, splits, key) for key in ("train_split", "test_split"))
    except UserError:
        raise
    except Exception as error:  # whatever configurations, files and features can hold
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())
        raise UserError(
            f"dataset={config.dataset}: it can't be loaded: {type(cause).__name__}: {reason}; is all of it there, and "
            "dataset_config one of its own?"
        ) from error
    return csv.classification(config, train, test, f"train_split={config.train_split}", names)


def _load(datasets: Any, name: str, configuration: str | None) -> dict[str, Any]:
    """All splits: from a folder, from the hub, or from what the hub's library keeps on this disk."""
    folder = os.path.expanduser(name)
    saved = any(os.path.exists(os.path.join(folder, file)) for file in ("dataset_dict.json", "state.json"))
    if saved or "://" in name:
        if configuration is not None:
            raise UserError(f"dataset_config={configuration!r}: the folder {name} holds one data set; leave it out")
        loaded = datasets.load_from_disk(folder)
        return loaded if isinstance(loaded, dict) else {"train": loaded}
    if os.path.isdir(folder):  # files that `datasets` reads
        return datasets.load_dataset(folder, configuration)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"dataset={name}: there is no such folder; give a hub id, or a folder that `datasets` saved")
    try:
        hf_hub.find("dataset", name, f"dataset={name}", "give a folder that `datasets` saved")
    except hf_hub.Unreachable as unreachable:
        switches = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (datasets.config, "HF_HUB_OFFLINE")]
        before = [getattr(*switch) for switch in switches]
        try:
            for switch in switches:
                setattr(*switch, True)
            return datasets.load_dataset(name, configuration)
        except Exception as error:
            raise UserError(f"{unreachable} (on this machine: {type(error).__name__}: {error})") from error
        finally:
            for switch, value in zip(switches, before, strict=True):
                setattr(*switch, value)
    return datasets.load_dataset(name, configuration)


def _table(datasets: Any, config: Config, splits: dict[str, Any], key: str) -> tuple[tables.Table, list[str] | None]:
    """The examples of a split or of parts of splits, and the labels' names in order if they all have names."""
    spec, column = getattr(config, key), str(config.label_column)
    sizes = {name: len(split) for name, split in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except ValueError as error:
        raise UserError(
            f"{key}={spec}: {error}; the splits are {', '.join(sizes)}, and train[:80%] is a part of one"
        ) from error
    wanted = tables.wanted(config, key, csv.columns(config))
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    files, names = list[tuple[str, Sequence[int]]](), dict[str, None]()
    all_named = True
    for part in parts:
        split = splits[part.splitname]
        where = f"dataset={config.dataset}, split {part.splitname}"
        formats.names(where, split.column_names, wanted)
        rows = range(min(part.from_, len(split)), min(part.to, len(split)))
        if not rows:
            continue
        columns = split.select(rows).select_columns(list(wanted)).with_format(None)[:]
        own = getattr(split.features[column], "names", None)  # of this part: another may number them differently
        if own is None:
            all_named = False
        else:
            columns[column] = _named(columns[column], own, rows, f"{where} (rows from 0)", column)
            names |= dict.fromkeys(own)
        for name, items in columns.items():
            values[name] += items
        files.append((f"{where} (rows from 0)", rows))
    if not values[column]:
        raise UserError(f"{key}={spec}: it holds not a single row")
    return tables.Table(values, files), list(names) if all_named else None


def _named(labels: list[int | None], names: list[str], rows: range, where: str, column: str) -> list[str | None]:
    for row, label in zip(rows, labels, strict=True):
        if label is not None and not 0 <= label < len(names):
            secret = "; a split whose labels are kept secret has -1: take another one" if label == -1 else ""
            raise UserError(
                f"{where}, row {row}, column {column}: expected 0 to {len(names) - 1}, found {label}{secret}"
            )
    return [None if label is None else names[label] for label in labels]
