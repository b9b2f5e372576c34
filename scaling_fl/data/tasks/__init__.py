"""Text classification tasks. A task is a module of this package, found by its name.

It has a function `load(config, report) -> Task`, which reads what the configuration names (`report` shows progress),
and says which of the keys in `KEYS` it `NEEDS` and which it `TAKES`. A new task is a new file here; nothing else has
to be told. Checks that concern every task are made once, in `load` below.
"""

import functools
import hashlib
import importlib
import itertools
import pkgutil
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scaling_fl.data.subsets import stratified
from scaling_fl.errors import UserError
from scaling_fl.progress import Report, unreported

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config

_HELPERS = {"downloads", "formats", "tables"}

# The keys of which each task has a use for some. What the others are set to would be ignored: it is refused.
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


@dataclass(frozen=True)
class Split:
    """The examples for training, or for testing."""

    texts: list[str]
    labels: npt.NDArray[np.int64]  # (N,), 0…C-1
    pairs: list[str] | None = None  # N second texts, for tasks on pairs
    notes: tuple[str, ...] = ()  # what the user should know of how they were read
    sites: list[str] | None = None  # whose each of the N is, by `partition_column`

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        sites = None if self.sites is None else [self.sites[i] for i in indices]
        return Split([self.texts[i] for i in indices], self.labels[indices], pairs, sites=sites)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over texts, pairs and labels: the same content has the same digest, wherever it was read."""
        digest = hashlib.sha256(f"{len(self)} ".encode() + self.labels.astype("<i8").tobytes())
        for text in itertools.chain(self.texts, self.pairs or ()):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


@dataclass(frozen=True)
class Task:
    """Texts, labels and the labels' names."""

    train: Split
    test: Split
    label_names: tuple[str, ...]  # C names
    notes: tuple[str, ...] = ()  # what the user should know; set by `load`

    def digest(self) -> str:
        """SHA-256 over the contents of both splits, the labels' names, and whose the training examples are."""
        parts = (*self.label_names, self.train.digest, self.test.digest, *(self.train.sites or ()))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def names() -> list[str]:
    """The names of all tasks."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _HELPERS)


def are_far(config: "Config") -> bool:
    """Whether the data come over a network by a library that is silent meanwhile."""
    return config.task_name == "hub" or any("://" in path for path in (config.train_path, config.test_path) if path)


def load(config: "Config", report: Report = unreported) -> Task:
    """Read the configured task and keep the configured number of rows.

    Raises `UserError` where a key, a file or a value in it is not what the task expects.
    """
    module = importlib.import_module(f"{__name__}.{config.task_name}")
    defaults = {field.name: field.default for field in fields(config)}
    for key in KEYS:
        value = getattr(config, key)
        if key in module.NEEDS and value is None:
            raise UserError(f"{key}: task_name={config.task_name} needs it; write {key}=…")
        if key not in (*module.NEEDS, *module.TAKES) and value != defaults[key]:
            uses = ", ".join((*module.NEEDS, *module.TAKES)) or "none of its kind"
            raise UserError(f"{key}={value!r}: task_name={config.task_name} has no use for it; it takes {uses}")
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
            f"{kept}{source}: every row has the label {task.label_names[counts.argmax()]!r}; there is nothing to classify"
        )
    notes = [*task.train.notes, *task.test.notes]
    notes += [
        f"no training example has the label {task.label_names[label]!r}; test examples that have it: {number:,}"
        for label, number in enumerate(np.bincount(test.labels, minlength=len(counts)))
        if number and not counts[label]
    ]
    notes += [
        f"empty {name} texts, which are kept: {empty:,} of {len(texts):,}"
        for name, texts in (
            ("training", train.texts),
            ("test", test.texts),
            ("second training", train.pairs or ()),
            ("second test", test.pairs or ()),
        )
        if (empty := sum(not text.strip() for text in texts))
    ]
    return replace(task, train=train, test=test, notes=tuple(notes))
