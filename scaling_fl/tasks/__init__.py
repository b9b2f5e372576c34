"""Text classification tasks. A task is a module of this package, found by its name.

It has one function, `load(config) -> Task`, which reads the files that the configuration names. A new task is
a new file here; nothing else has to be told. Checks that concern every task are made once, in `load` below.
"""

import hashlib
import importlib
import pkgutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scaling_fl.errors import UserError
from scaling_fl.sharding import stratified

if TYPE_CHECKING:
    from scaling_fl.config import Config

_HELPERS = {"tables"}


@dataclass(frozen=True)
class Split:
    """The examples for training, or for testing."""

    texts: list[str]
    labels: npt.NDArray[np.int64]  # (N,), 0…C-1

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        return Split([self.texts[i] for i in indices], self.labels[indices])


@dataclass(frozen=True)
class Task:
    """Texts, labels and the labels' names."""

    train: Split
    test: Split
    label_names: tuple[str, ...]  # C names

    def digest(self) -> str:
        """SHA-256 over all texts, labels and names: the same content has the same digest, wherever it was read."""
        digest = hashlib.sha256("\0".join(self.label_names).encode())
        for split in (self.train, self.test):
            digest.update(split.labels.astype("<i8").tobytes())
            for text in split.texts:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


def names() -> list[str]:
    """The names of all tasks."""
    return sorted({module.name for module in pkgutil.iter_modules(__path__)} - _HELPERS)


def load(config: "Config") -> Task:
    """Read the configured task and keep the configured number of rows.

    Raises `UserError` where a file or a value in it is not what the task expects.
    """
    task: Task = importlib.import_module(f"{__name__}.{config.task_name}").load(config)
    if len(task.label_names) < 2:
        raise UserError(
            f"{config.train_path}: every row has the label {task.label_names[0]!r}; there is nothing to classify"
        )
    train, test = task.train, task.test
    if config.max_train_examples is not None:
        train = train.take(stratified(train.labels, config.max_train_examples, config.data_seed))
    if config.max_test_examples is not None:
        test = test.take(stratified(test.labels, config.max_test_examples, config.data_seed))
    return Task(train, test, task.label_names)
