"""Any text, to predict each token from those before it: text files, CSV, TSV, JSON lines and Parquet, or a hub data set."""

import os

import numpy as np

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.data.examples import NO_EXAMPLES, Split, Task
from scaling_fl.data.readers import tables
from scaling_fl.data.readers.batches import Wanted
from scaling_fl.data.readers.paths import expand
from scaling_fl.data.readers.text_lines import read_lines
from scaling_fl.data.tasks import hub
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_OF_FILES, _OF_DATASETS = ("train_path", "test_path"), ("dataset_config", "train_split", "test_split")
_OPTIONAL = ("text_column", "label_column", "partition_column", "test_fraction")


def keys(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """See the package: other keys for a hub data set than for files."""
    if config.dataset is not None:
        return ("dataset",), (*_OF_DATASETS, *_OPTIONAL)
    return _OF_FILES, ("dataset", *_OPTIONAL)


def load(config: Config, report: Report) -> Task:
    """Documents. Their labels, if `label_column` is set, only divide them among sites."""
    columns = {config.text_column or "text": "text_column"}
    if config.label_column is not None:
        columns[config.label_column] = "label_column"
    train, test = both_tables(config, columns)
    return of_tables(config, train, test, config.text_column or "text")


def both_tables(
    config: Config, columns: Wanted, of_test: Wanted | None = None
) -> tuple[tables.Table | None, tables.Table | None]:
    """The training and the test table, from files or from a hub data set. `of_test`: columns that the latter has besides."""
    if config.dataset is not None:
        return hub.read(config, columns, of_test)[:2]
    return _table(config, "train_path", columns), _table(config, "test_path", {**columns, **(of_test or {})})


def of_tables(config: Config, train: tables.Table | None, test: tables.Table | None, column: str) -> Task:
    """The task of predicting the texts of `column`. Raises `UserError` if labels are needed, and there are none."""
    chosen = chosen_partition(config.to_mapping())
    if config.label_column is None and chosen in ("by_label", "dirichlet", "labels_per_site"):
        raise UserError(
            f"partition={chosen}: it divides rows by label, and no column of labels is named; set label_column, or "
            "partition=iid, sizes or column"
        )
    for key, value in (("keep_best", config.keep_best), ("attack", config.attack)):
        if value is not None and value.endswith(("macro_f1", "label_flip")):
            raise UserError(f"{key}={value}: a language model has no classes; choose another, or leave it out")
    first = test if train is None else train
    assert first is not None
    names = {} if config.label_column is None else tables.class_numbers(set(first.labels(config.label_column)))

    def split(table: tables.Table | None) -> Split:
        if table is None:
            return NO_EXAMPLES
        texts = table.texts(column)
        labels = np.zeros(len(texts), np.int64)
        if config.label_column is not None:
            labels = table.classes(config.label_column, names, str(config.train_path or config.dataset))
        return Split(texts, labels, notes=table.notes, sites=table.sites(config.partition_column))

    return Task(split(train), split(test), tuple(names), predicts_tokens=True)


def _table(config: Config, key: str, columns: Wanted) -> tables.Table | None:
    if getattr(config, key) is None:
        return None
    paths = expand(getattr(config, key), key)
    wanted = tables.wanted(config, key, columns)
    if {os.path.splitext(path.lower())[1] for path in paths} == {".txt"}:
        if list(wanted) != ["text"]:
            named = [name for name in wanted.values() if name is not None and getattr(config, name) is not None]
            leave_out = f"{', '.join(named)} name some; leave them out, or use"
            needed = f"task_name={config.task_name} reads {', '.join(wanted)}; use"
            raise UserError(
                f"{key}={getattr(config, key)}: text files have no columns, but "
                f"{leave_out if 'text_column' in wanted.values() else needed} JSON lines"
            )
        return read_lines(paths, key)
    return tables.read(getattr(config, key), key, wanted)
