"""Loading of the configured task: its module in `data/tasks`, the keys it takes, and checks that apply to all tasks."""

import importlib
from dataclasses import fields, replace

import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.subsets import stratified
from scaling_fl.errors import UserError
from scaling_fl.progress import Report, unreported

# Keys that only some tasks use. A key that the task would ignore is refused.
KEYS = (
    "train_path",
    "test_path",
    "text_column",
    "text_pair_column",
    "label_column",
    "partition_column",
    "keep_br_tags",
    "dataset",
    "dataset_config",
    "train_split",
    "test_split",
)


def reads_over_network(config: Config) -> bool:
    """Whether a library that reports no progress may read the data over a network."""
    return config.task_name == "hub" or any("://" in path for path in (config.train_path, config.test_path) if path)


def load_task(config: Config, report: Report = unreported) -> Task:
    """Load the configured task, reduced to the configured number of rows.

    Raises `UserError` if a key, a file or a value in a file is not what the task expects.
    """
    module = importlib.import_module(f"scaling_fl.data.tasks.{config.task_name}")
    defaults = {field.name: field.default for field in fields(config)}
    for key in KEYS:
        value = getattr(config, key)
        if key in module.NEEDS and value is None:
            raise UserError(
                f"{key}: task_name={config.task_name} needs it; set {key}={'FILE' if key.endswith('path') else 'NAME'}"
            )
        if key not in (*module.NEEDS, *module.TAKES) and value != defaults[key]:
            uses = ", ".join((*module.NEEDS, *module.TAKES)) or "none of these keys"
            raise UserError(f"{key}={value!r}: task_name={config.task_name} doesn't use it; it takes {uses}")
    task: Task = module.load(config, report)
    train, test = task.train, task.test
    if config.max_train_examples is not None:
        train = train.take(stratified(train.labels, config.max_train_examples, config.data_seed))
    if config.max_test_examples is not None:
        test = test.take(stratified(test.labels, config.max_test_examples, config.data_seed))
    counts = np.bincount(train.labels, minlength=len(task.label_names))
    if (counts > 0).sum() < 2:
        source = config.train_path or config.dataset or config.task_name
        kept = "" if len(train) == len(task.train) else f"max_train_examples={config.max_train_examples} of "
        raise UserError(
            f"{kept}{source}: every row has the label {task.label_names[counts.argmax()]!r}; there is nothing to classify; use data with two labels or more"
        )
    notes = [*task.train.notes, *task.test.notes]
    notes += [
        f"no training example has the label {task.label_names[label]!r}; test examples that have it: {number:,}"
        for label, number in enumerate(np.bincount(test.labels, minlength=len(counts)))
        if number and not counts[label]
    ]
    notes += [
        f"empty {name} texts (kept): {empty:,} of {len(texts):,}"
        for name, texts in (
            ("training", train.texts),
            ("test", test.texts),
            ("second training", train.pairs or ()),
            ("second test", test.pairs or ()),
        )
        if (empty := sum(not text.strip() for text in texts))
    ]
    return replace(task, train=train, test=test, notes=tuple(notes))
