"""On CPUs, a matrix takes its step within the backward pass, while it and its gradient are in the processor's caches.

A gradient is dropped after its step, so the flat gradient takes no memory for matrices. The optimisers are elementwise:
the values are those of one step over the flat buffer.
"""

import functools
from collections.abc import Callable, Sequence

import torch

from scaling_fl.federated.algorithms import LocalTerm
from scaling_fl.federated.local_optimiser import TORCH_OPTIMISERS
from scaling_fl.federated.resident import Resident, precision
from scaling_fl.models.flat_parameters import Entry, Layout

MIN_SIZE = 2**19  # of the average matrix: below, Python at each of them takes longer than the memory


def take_over(
    resident: Resident, optimiser: torch.optim.Optimizer, terms: Sequence[LocalTerm]
) -> dict[str, torch.optim.Optimizer]:
    """Take the matrices from a fresh optimiser of the flat buffer, which keeps the vectors.

    Returns an optimiser for each matrix by its name, or none where something needs the whole gradient of a step.
    """
    config, model = resident.config, resident.model
    whole = bool(terms) or config.max_grad_norm is not None or precision(config, resident.device) == "fp16"
    once = config.gradient_accumulation_steps == 1 and not config.gradient_checkpointing
    if whole or not once or config.keep_optimiser or not model.collects or not _large(model.layout):
        return {}
    (of_matrices,) = optimiser.param_groups[0]["params"]
    of_matrices.grad = None  # torch leaves out what has no gradient
    kind, options = TORCH_OPTIMISERS[config.optimiser]
    matrices = _matrices(model.layout)
    ends = [*(matrix.start for matrix in matrices[1:]), model.layout.decayed]
    parts = [torch.nn.Parameter(model.flat[matrix.start : end]) for matrix, end in zip(matrices, ends, strict=True)]
    return {
        matrix.name: kind([part], lr=config.learning_rate, weight_decay=config.weight_decay, **options)
        for matrix, part in zip(matrices, parts, strict=True)
    }


def takers(optimisers: dict[str, torch.optim.Optimizer]) -> dict[str, Callable[[torch.Tensor], None]]:
    """What makes a step of each matrix with its gradient."""
    return {name: functools.partial(_step, optimiser) for name, optimiser in optimisers.items()}


def _step(optimiser: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    (part,) = optimiser.param_groups[0]["params"]
    # A kernel rounds the values that don't fill a vector otherwise: the step includes the padding after the matrix.
    padding = len(part) - gradient.numel()
    part.grad = torch.nn.functional.pad(gradient.reshape(-1), (0, padding)) if padding else gradient.reshape(-1)
    optimiser.step()
    part.grad = None


def _matrices(layout: Layout) -> list[Entry]:
    return [entry for entry in layout.entries if entry.start < layout.decayed]


def _large(layout: Layout) -> bool:
    return layout.decayed >= MIN_SIZE * max(1, len(_matrices(layout)))
