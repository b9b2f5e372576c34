"""Collecting the predictions of an evaluation, and merging those of several workers."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.data.examples import Predictions


class Collector:
    """Collects predictions of the batches of `evaluate`, as its `on_logits`."""

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]] = []

    def add(self, rows: npt.NDArray[np.int64], logits: torch.Tensor) -> None:
        """Add the examples `rows` (B,) with logits (B, C). A GPU goes on without waiting."""
        probabilities, labels = logits.float().softmax(-1).max(-1)
        self._parts.append((rows, labels, probabilities))

    def collected(self) -> tuple[npt.NDArray[np.generic], ...]:
        """The fields of `Predictions` for everything that was added, in that order."""
        rows = [part[0] for part in self._parts]
        labels = [part[1].cpu().numpy() for part in self._parts]
        probabilities = [part[2].cpu().numpy() for part in self._parts]
        return (
            np.concatenate([np.empty(0, np.int64), *rows]),
            np.concatenate([np.empty(0, np.int64), *labels]),
            np.concatenate([np.empty(0, np.float32), *probabilities]),
        )


def merged(parts: Iterable[tuple[npt.NDArray[np.generic], ...]]) -> Predictions:
    """The predictions that several collectors hold together, in order of rows."""
    rows, labels, probabilities = (np.concatenate(fields) for fields in zip(*parts, strict=True))
    order = np.argsort(rows)
    return Predictions(rows[order], labels[order], probabilities[order])
