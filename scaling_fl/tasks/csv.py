"""Any CSV file with a header: `text_column` and `label_column` name its columns; labels are what is found there."""

import numpy as np

from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.tasks import Split, Task, tables


def load(config: Config) -> Task:
    for key in ("text_column", "label_column"):
        if getattr(config, key) is None:
            raise UserError(f"{key}: task_name=csv needs it; write {key}=<a column's name>")
    train, test = (tables.read(getattr(config, key), key) for key in ("train_path", "test_path"))
    label_names = _in_order(set(_labels(train, config)))
    return Task(_split(train, config, label_names), _split(test, config, label_names), tuple(label_names))


def _labels(table: tables.Table, config: Config) -> list[str]:
    return table.column(config.label_column or "", "label_column")


def _in_order(labels: set[str]) -> list[str]:
    """Labels in numerical order if all are whole numbers, else alphabetically: the same in every run."""
    if all(label.removeprefix("-").isdecimal() for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def _split(table: tables.Table, config: Config, label_names: list[str]) -> Split:
    numbers = {name: number for number, name in enumerate(label_names)}
    labels = _labels(table, config)
    for index, label in enumerate(labels):
        if not label.strip():
            raise UserError(f"{table.path}, row {table.rows[index]}, column {config.label_column}: the label is empty")
        if label not in numbers:
            raise UserError(
                f"{table.path}, row {table.rows[index]}, column {config.label_column}: the label {label!r} "
                f"doesn't occur in {config.train_path}, so that no site can learn it"
            )
    texts = table.column(config.text_column or "", "text_column")
    return Split(texts, np.array([numbers[label] for label in labels], np.int64))
