"""Any CSV, TSV, JSON lines or Parquet files with named columns; the training file determines the set of labels."""

from collections.abc import Sequence

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import NO_EXAMPLES, Split, Task
from scaling_fl.data.readers import tables
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

NEEDS = ("train_path", "test_path", "text_column", "label_column")
TAKES = ("text_pair_column", "partition_column", "test_fraction")


def load(config: Config, report: Report) -> Task:
    train, test = (
        None
        if getattr(config, key) is None
        else tables.read(getattr(config, key), key, tables.wanted(config, key, columns(config)))
        for key in ("train_path", "test_path")
    )
    return classification(config, train, test, str(config.train_path or config.test_path))


def columns(config: Config) -> dict[str, str | None]:
    """The columns that the configuration names, each with the key that names it. Raises `UserError` on duplicates."""
    keys = ("text_column", "text_pair_column", "label_column")
    named: dict[str, str | None] = {}
    for key in keys:
        name = getattr(config, key)
        if name in named:
            raise UserError(f"{key}={name!r}: {named[name]} names the same column; choose different columns")
        if name is not None:
            named[name] = key
    return named


def classification(
    config: Config,
    train: tables.Table | None,
    test: tables.Table | None,
    source: str,
    names: Sequence[str] | None = None,
) -> Task:
    """Build a task from one or two tables, the first of which determines the labels.

    `names`: the labels in order, if known; `source`: where they come from, for messages.
    """
    first = test if train is None else train
    assert first is not None
    notes: list[str] = []
    text, pair, label = (str(getattr(config, key)) for key in ("text_column", "text_pair_column", "label_column"))
    if names is None:
        found = first.labels(label)
        classes = tables.class_numbers(set(found))
        notes = tables.look_alikes(f"label_column={label!r}", classes)
        if len(classes) > max(1000, len(found) // 2):
            raise UserError(
                f"label_column={label!r}: {len(found):,} {'test' if train is None else 'training'} rows have {len(classes):,} different values there; "
                "choose the column that holds the classes"
            )
    else:
        classes = {name: number for number, name in enumerate(names)}

    def split(table: tables.Table | None) -> Split:
        if table is None:
            return NO_EXAMPLES
        pairs = None if config.text_pair_column is None else table.texts(pair)
        labels = table.classes(label, classes, source, exact=names is not None)
        return Split(table.texts(text), labels, pairs, table.notes, table.sites(config.partition_column))

    return Task(split(train), split(test), tuple(classes), tuple(notes))
