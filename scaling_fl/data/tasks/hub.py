"""Any data set on the Hugging Face hub, or a folder saved by the package `datasets`, which is an optional dependency."""

import os
from collections.abc import Sequence
from typing import Any

import huggingface_hub

from scaling_fl import hf_hub, host
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.readers import tables
from scaling_fl.data.readers.batches import Wanted
from scaling_fl.data.readers.columns import check_columns
from scaling_fl.data.tasks import csv
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

NEEDS = ("dataset", "text_column", "label_column")
TAKES = ("dataset_config", "train_split", "test_split", "text_pair_column", "partition_column", "test_fraction")


def load(config: Config, report: Report) -> Task:
    train, test, names = read(config, csv.columns(config))
    return csv.classification(config, train, test, f"train_split={config.train_split}", names)


def read(
    config: Config, columns: Wanted, of_test: Wanted | None = None
) -> tuple[tables.Table, tables.Table | None, list[str] | None]:
    """The columns of both splits, and the label names in order if the training split has them. Raises `UserError`.

    `of_test`: columns that only the test split has to have.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError("dataset: it needs the package datasets: ./run-local.sh -m pip install datasets") from error
    datasets.disable_progress_bars()
    try:
        splits = _load(datasets, str(config.dataset), config.dataset_config)
        train, names = _table(datasets, config, splits, "train_split", columns)
        of_test = {**columns, **(of_test or {})}
        test = None if config.test_fraction else _table(datasets, config, splits, "test_split", of_test)[0]
    except UserError:
        raise
    except Exception as error:  # configurations, files and features can fail in any way
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())
        raise UserError(
            f"dataset={config.dataset}: cannot load it: {type(cause).__name__}: {reason}; is it complete, and is "
            "dataset_config one of its configurations?"
        ) from error
    return train, test, names


def _load(datasets: Any, name: str, configuration: str | None) -> dict[str, Any]:
    """Load all splits from a folder, from the hub, or, if the hub is unreachable, from the library's local cache."""
    folder = os.path.expanduser(name)
    saved = any(os.path.exists(os.path.join(folder, file)) for file in ("dataset_dict.json", "state.json"))
    if saved or "://" in name:
        if configuration is not None:
            raise UserError(f"dataset_config={configuration!r}: the folder {name} holds one data set; leave it out")
        loaded = datasets.load_from_disk(folder)
        return loaded if isinstance(loaded, dict) else {"train": loaded}
    if os.path.isdir(folder):  # of data files in any format that `datasets` reads
        return datasets.load_dataset(folder, configuration)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"dataset={name}: there is no such folder{host.did_you_mean(name)}; give a hub id, or a folder saved by `datasets`"
        )
    try:
        hf_hub.check_exists(
            "dataset", name, f"dataset={name}{host.did_you_mean(name)}", "give a folder saved by `datasets`"
        )
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


def _table(
    datasets: Any, config: Config, splits: dict[str, Any], key: str, named: Wanted
) -> tuple[tables.Table, list[str] | None]:
    """The examples that a split specification selects, and the label names in order if every part has names."""
    spec, labels = getattr(config, key), config.label_column
    sizes = {name: len(split) for name, split in splits.items()}
    try:
        parts = datasets.ReadInstruction.from_spec(spec).to_absolute(sizes)
    except ValueError as error:
        raise UserError(
            f"{key}={spec}: {error}; the splits are {', '.join(sizes)}; train[:80%] selects a part"
        ) from error
    wanted = tables.wanted(config, key, named)
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    files, names = list[tuple[str, Sequence[int]]](), dict[str, None]()
    all_named = True
    for part in parts:
        split = splits[part.splitname]
        where = f"dataset={config.dataset}, split {part.splitname}"
        check_columns(where, split.column_names, wanted)
        rows = range(min(part.from_, len(split)), min(part.to, len(split)))
        if not rows:
            continue
        columns = split.select(rows).select_columns(list(wanted)).with_format(None)[:]
        # Per part, because splits may number their labels differently.
        label_names = None if labels is None else getattr(split.features[labels], "names", None)
        if labels is None or label_names is None:
            all_named = False
        else:
            columns[labels] = _to_names(columns[labels], label_names, rows, f"{where} (rows from 0)", labels)
            names |= dict.fromkeys(label_names)
        for name, items in columns.items():
            values[name] += items
        files.append((f"{where} (rows from 0)", rows))
    if not files:
        raise UserError(f"{key}={spec}: it selects no rows; choose a larger part")
    return tables.Table(values, files), list(names) if all_named else None


def _to_names(labels: list[int | None], names: list[str], rows: range, where: str, column: str) -> list[str | None]:
    for row, label in zip(rows, labels, strict=True):
        if label is not None and not 0 <= label < len(names):
            hint = "; -1 marks withheld labels: choose another split" if label == -1 else ""
            raise UserError(f"{where}, row {row}, column {column}: expected 0 to {len(names) - 1}, found {label}{hint}")
    return [None if label is None else names[label] for label in labels]
