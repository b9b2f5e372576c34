"""Evaluation of a model on a whole set, in fixed batches divided among the workers."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.data import token_store
from scaling_fl.federated.metrics import BatchMetrics
from scaling_fl.federated.resident import Examples, Resident


def evaluate(
    resident: Resident,
    params: torch.Tensor,
    worker: int,
    num_workers: int,
    examples: Examples | None = None,
    on_logits: Callable[[npt.NDArray[np.int64], torch.Tensor], None] | None = None,
    counted: bool = True,
) -> list[BatchMetrics]:
    """Evaluate `params` (size,) on this worker's share of `examples`, by default the test set.

    The batches don't depend on the number of workers. Worker w takes batches w, w + num_workers, …, so that together the
    workers evaluate every example once. `on_logits` is called with the indices (B,) and logits (P, C) of each part of
    a batch. If a batch exceeds the GPU's memory, it and all later ones are split. `counted`: whether the progress of the
    round counts the batches.
    """
    with resident.model.reading(params), torch.inference_mode():
        return _evaluated(resident, worker, num_workers, examples or resident.test_set, on_logits, counted)


def _evaluated(
    resident: Resident,
    worker: int,
    num_workers: int,
    examples: Examples,
    on_logits: Callable[[npt.NDArray[np.int64], torch.Tensor], None] | None,
    counted: bool,
) -> list[BatchMetrics]:
    resident.model.module.eval()
    pending = []
    store, rows = examples
    num_labels = resident.model.module.config.num_labels if store.predicted is None else 0
    fitting = resident.config.evaluation_batch_size(len(rows))
    batches = token_store.evaluation_batches(store, rows, fitting)
    for number in range(worker, len(batches), num_workers):
        loss_sum = torch.zeros((), dtype=torch.float64, device=resident.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=resident.device)
        confusion = torch.zeros(num_labels**2, dtype=torch.int64, device=resident.device)
        rest = batches[number]
        while len(rest) > 0:
            try:
                batch = resident.to_device(store.batch(rest[:fitting]))
                logits = resident.logits(batch)
                of_batch = cross_entropy(logits, batch.labels, reduction="none").double().sum()
                guesses = logits.argmax(-1)
                if on_logits is not None:
                    on_logits(rest[:fitting], logits)
            except torch.OutOfMemoryError:
                if fitting == 1:
                    raise
                fitting = -(-min(fitting, len(rest)) // 2)
                continue
            del logits  # those of a language model are large
            loss_sum += of_batch
            num_correct += (guesses == batch.labels).sum()
            if num_labels:
                cells = batch.labels * num_labels + guesses
                confusion.index_add_(0, cells, torch.ones_like(cells))
            rest = rest[fitting:]
        count = int(store.num_predictions[batches[number]].sum())
        pending.append((number, loss_sum, num_correct, count, confusion.view(num_labels, num_labels)))
        resident.on_step() if counted else resident.on_alive()
    return [
        BatchMetrics(number, loss.item(), int(hits.item()), count, confusion.cpu().numpy())
        for number, loss, hits, count, confusion in pending
    ]
