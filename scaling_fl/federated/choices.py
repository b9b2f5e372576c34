"""Accuracy on multiple-choice questions: is the right response the one that the model finds most probable?"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.data.choices import Choices
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.resident import Examples, Resident

Scored = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]  # indices of responses, and their log-probabilities


def scored(resident: Resident, params: torch.Tensor, worker: int, num_workers: int, choices: Choices) -> Scored:
    """The log-probabilities of this worker's share of the responses, end tokens included."""
    indices, sums = [np.empty(0, np.int64)], [np.empty(0)]

    def add(rows: npt.NDArray[np.int64], logits: torch.Tensor) -> None:
        labels = choices.store.batch(rows).labels.to(logits.device)
        of_tokens = -cross_entropy(logits, labels, reduction="none").double().cpu().numpy()
        ends = np.cumsum(choices.store.num_predictions[rows])
        indices.append(rows)  # after the last line that may run out of memory
        sums.append(np.array([part.sum() for part in np.split(of_tokens, ends[:-1])]))

    everything = Examples(choices.store, np.arange(len(choices.store)))
    evaluate(resident, params, worker, num_workers, everything, on_logits=add, counted=False)
    return np.concatenate(indices), np.concatenate(sums)


def accuracies(parts: Iterable[Scored], choices: Choices) -> dict[str, float]:
    """Accuracy by the response's log-probability, and by its mean over the response's tokens, from all workers' parts.

    The first of equally probable responses counts as chosen.
    """
    indices, sums = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    total = np.empty(len(choices.rows))
    total[indices] = sums
    starts = np.flatnonzero(np.diff(choices.rows, prepend=-1))

    def accuracy(values: npt.NDArray[np.float64]) -> float:
        own, right = np.split(values, starts[1:]), np.split(choices.right, starts[1:])
        return float(np.mean([of_row[int(v.argmax())] for v, of_row in zip(own, right, strict=True)]))

    return {
        "validation.choice_accuracy": accuracy(total),
        "validation.choice_accuracy_per_token": accuracy(total / choices.store.num_predictions),
    }
