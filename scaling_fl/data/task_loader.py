"""Loading of the configured task: its module in `data/tasks`, the keys it takes, and checks that apply to all tasks."""

import importlib
from dataclasses import fields, replace
from typing import Any

import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.subsets import held_back, stratified
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
    "prompt_column",
    "response_column",
    "messages_column",
    "prompt_template",
    "choices_column",
    "dataset",
    "dataset_config",
    "train_split",
    "test_split",
    "test_fraction",
)
_TEST_KEYS = ("test_path", "test_split")  # replaced by `test_fraction`


def reads_over_network(config: Config) -> bool:
    """Whether a library that reports no progress may read the data over a network."""
    return config.dataset is not None or any("://" in path for path in (config.train_path, config.test_path) if path)


def load_task(config: Config, report: Report = unreported) -> Task:
    """Load the configured task, reduced to the configured number of rows.

    Raises `UserError` if a key, a file or a value in a file is not what the task expects.
    """
    module = _module(config)
    whole: Task = module.load(config, report)
    notes = [*whole.train.notes, *whole.test.notes]
    if config.test_fraction:
        whole = _with_test_fraction(config, whole)
        notes.append(f"the test set is {len(whole.test):,} of {len(whole.train) + len(whole.test):,} rows")
    train = _reduced(whole.train, config.max_train_examples, config.data_seed)
    test = _reduced(whole.test, config.max_test_examples, config.data_seed)
    counts = np.bincount(train.labels, minlength=len(whole.label_names))
    if (counts > 0).sum() < 2 and not whole.predicts_tokens:
        source = config.train_path or config.dataset or config.task_name
        # Not to blame if all rows have the same label.
        reduced = len(train) < len(whole.train) and len(np.unique(whole.train.labels)) > 1
        kept = f"max_train_examples={config.max_train_examples} of " if reduced else ""
        remedy = "raise it" if reduced else "use data with two labels or more"
        raise UserError(
            f"{kept}{source}: every row has the label {whole.label_names[counts.argmax()]!r}; there is nothing to "
            f"classify; {remedy}"
        )
    for key, value in (
        ("weighting", config.weighting == "tokens"),
        ("generate_examples", config.generate_examples > 0),
    ):
        if value and not whole.predicts_tokens:
            raise UserError(
                f"{key}={getattr(config, key)}: task_name={config.task_name} classifies texts, and predicts no tokens; leave out "
                f"{key}, or choose task_name=lm or instructions"
            )
    notes += [
        f"no training example has the label {whole.label_names[label]!r}; test examples that have it: {number:,}"
        for label, number in enumerate(np.bincount(test.labels, minlength=len(counts)))
        if number and not counts[label]
    ]
    notes += [*_empty_texts(train, "training"), *_empty_texts(test, "test")]
    return replace(whole, train=train, test=test, notes=(*whole.notes, *notes))


def load_test(config: Config, report: Report = unreported) -> Task:
    """Load only the test examples, if the task can: the label names are then those of the test files.

    Raises `UserError`; see `load_task`.
    """
    alone = replace(config, train_path=None, test_fraction=0.0)
    module = None if config.test_path is None else _module(alone, "train_path")
    if module is None or "test_fraction" not in _keys(module, config)[1]:
        return load_task(config, report)
    task: Task = module.load(alone, report)
    test = _reduced(task.test, config.max_test_examples, config.data_seed)
    return replace(task, test=test, notes=(*task.notes, *task.test.notes, *_empty_texts(test, "test")))


def _module(config: Config, *not_needed: str) -> Any:
    """The module of the task. Raises `UserError` if a key that it needs is missing, or one is set that it doesn't take."""
    module = importlib.import_module(f"scaling_fl.data.tasks.{config.task_name}")
    defaults = {field.name: field.default for field in fields(config)}
    needs, takes = _keys(module, config)
    takes_fraction = "test_fraction" in takes
    for key in KEYS:
        value = getattr(config, key)
        if key not in (*needs, *takes) and value != defaults[key]:
            uses = ", ".join((*needs, *takes)) or "none of these keys"
            raise UserError(f"{key}={value!r}: task_name={config.task_name} doesn't use it; it takes {uses}")
        if config.test_fraction and key in _TEST_KEYS:
            if value != defaults[key]:
                raise UserError(
                    f"test_fraction={config.test_fraction:g} {key}={value}: both set the test set; leave one of them out"
                )
        elif key in needs and value is None and key not in not_needed:
            alternative = ", or test_fraction=0.2 to test on a part of train_path"
            raise UserError(
                f"{key}: task_name={config.task_name} needs it; set {key}={'FILE' if key.endswith('path') else 'NAME'}"
                f"{alternative if key in _TEST_KEYS and takes_fraction else ''}"
            )
    return module


def _keys(module: Any, config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys that a task needs, and those that it takes; they may depend on others."""
    found: tuple[tuple[str, ...], tuple[str, ...]] = (
        module.keys(config) if hasattr(module, "keys") else (module.NEEDS, module.TAKES)
    )
    return found


def _with_test_fraction(config: Config, task: Task) -> Task:
    """Move the share `test_fraction` of the training examples, stratified by label, to the test examples."""
    labels = task.train.labels
    test = held_back(labels, config.test_fraction, config.data_seed, "test_fraction", "test")
    train = np.setdiff1d(np.arange(len(labels)), test)
    return replace(task, train=task.train.take(train), test=task.train.take(test))


def _reduced(split: Split, maximum: int | None, seed: int) -> Split:
    return split if maximum is None else split.take(stratified(split.labels, maximum, seed))


def _empty_texts(split: Split, name: str) -> list[str]:
    return [
        f"empty {which} texts (kept): {empty:,} of {len(texts):,}"
        for which, texts in ((name, split.texts), (f"second {name}", split.pairs or ()))
        if (empty := texts.count("") + sum(map(str.isspace, texts)))
    ]
