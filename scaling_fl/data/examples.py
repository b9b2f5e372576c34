"""The examples of a task: texts, labels and label names; and predictions of them."""

import functools
import hashlib
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Split:
    """The training or the test examples."""

    texts: list[str]
    labels: npt.NDArray[np.int64]  # (N,), 0…C-1
    pairs: list[str] | None = None  # N second texts, for tasks on pairs
    notes: tuple[str, ...] = ()  # for the user, on how they were read
    sites: list[str] | None = None  # the site of each of the N, from `partition_column`
    choices: list[list[str]] | None = None  # what each of the N could be, itself among them

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: npt.NDArray[np.int64]) -> "Split":
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        sites = None if self.sites is None else [self.sites[i] for i in indices]
        choices = None if self.choices is None else [self.choices[i] for i in indices]
        return Split([self.texts[i] for i in indices], self.labels[indices], pairs, sites=sites, choices=choices)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over texts, pairs, labels and choices: independent of where the content was read from."""
        digest = hashlib.sha256(f"{len(self)} ".encode() + self.labels.astype("<i8").tobytes())
        for text in itertools.chain(self.texts, self.pairs or (), *(self.choices or ())):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()


class Predictions(NamedTuple):
    """What a model says of N examples."""

    rows: npt.NDArray[np.int64]  # (N,): their positions in the split
    labels: npt.NDArray[np.int64]  # (N,): the most probable label
    probabilities: npt.NDArray[np.float32]  # (N,): its probability


NO_EXAMPLES = Split([], np.empty(0, np.int64))


@dataclass(frozen=True)
class Task:
    """Training examples, test examples and label names."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The label names among which a model chooses; none if it predicts tokens."""
        return () if self.predicts_tokens else self.label_names

    train: Split
    test: Split
    label_names: tuple[str, ...]  # C names
    notes: tuple[str, ...] = ()  # for the user; set by `load_task`
    predicts_tokens: bool = False  # of the texts; labels then only divide them among sites, and may all be the same
    conversations: bool = False  # the texts are JSON lists of messages, of which the assistant's are predicted

    def digest(self) -> str:
        """SHA-256 over the contents of both splits, the label names, and the sites of the training examples."""
        parts = (*self.label_names, self.train.digest, self.test.digest, *(self.train.sites or ()))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()
