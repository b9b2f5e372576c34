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
from scaling_fl.models.flat_parameters import FlatModel, Layout

MIN_SIZE = 2**17  # of a matrix: below, Python at each of them takes longer than the memory


def take_over(
    resident: Resident, optimiser: torch.optim.Optimizer, terms: Sequence[LocalTerm]
) -> dict[str, torch.optim.Optimizer]:
    """Take the large matrices from a fresh optimiser of the flat buffer, which keeps all else.

    Returns an optimiser for each matrix by its name, or none where something needs the whole gradient of a step.
    """
    config, model = resident.config, resident.model
    whole = bool(terms) or config.max_grad_norm is not None or precision(config, resident.device) == "fp16"
    once = config.gradient_accumulation_steps == 1 and not config.gradient_checkpointing
    if whole or not once or config.keep_optimiser or not model.collects:
        return {}
    large, others = _matrices(model.layout)
    if not large:
        return {}
    optimiser.param_groups[0]["params"] = [_part(model, span, gradient=True) for span in others]
    kind, options = TORCH_OPTIMISERS[config.optimiser]
    return {
        name: kind([_part(model, span)], lr=config.learning_rate, weight_decay=config.weight_decay, **options)
        for name, span in large.items()
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


def _part(model: FlatModel, span: slice, gradient: bool = False) -> torch.nn.Parameter:
    part = torch.nn.Parameter(model.flat[span])
    part.grad = model.gradient[span] if gradient else None
    return part


def _matrices(layout: Layout) -> tuple[dict[str, slice], list[slice]]:
    """The places of large matrices by name, with the padding after each; and of all others, neighbours together."""
    large, others = dict[str, slice](), list[slice]()
    matrices = [entry for entry in layout.entries if entry.start < layout.decayed]
    ends = [*(matrix.start for matrix in matrices[1:]), layout.decayed]
    for matrix, end in zip(matrices, ends, strict=True):
        if matrix.shape.numel() >= MIN_SIZE:
            large[matrix.name] = slice(matrix.start, end)
        elif others and others[-1].stop == matrix.start:
            others[-1] = slice(others[-1].start, end)
        else:
            others.append(slice(matrix.start, end))
    return large, others
