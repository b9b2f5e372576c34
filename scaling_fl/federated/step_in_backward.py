"""On CPUs, a matrix takes its step within the backward pass, while it and its gradient are in the processor's caches.

A gradient is dropped after its step, so the flat gradient takes no memory for matrices. The optimisers are elementwise:
the values are those of one step over the flat buffer. Of token embeddings, the rows that a site can reach take steps.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.federated import touched_rows
from scaling_fl.federated.algorithms import LocalTerm
from scaling_fl.federated.local_optimiser import TORCH_OPTIMISERS
from scaling_fl.federated.resident import Resident, precision
from scaling_fl.models.flat_parameters import FlatModel, Layout

MIN_SIZE = 2**17  # of a matrix: below, Python at each of them takes longer than the memory


class MatrixStep:
    """A step of one matrix, with the padding after it in the flat buffer: `optimiser` is over this part alone."""

    def __init__(self, optimiser: torch.optim.Optimizer):
        self.optimiser = optimiser

    def __call__(self, gradient: torch.Tensor) -> None:
        """Make a step with the gradient of the matrix."""
        (part,) = self.optimiser.param_groups[0]["params"]
        # A kernel rounds the values that don't fill a vector otherwise: the step includes the padding after the matrix.
        padding = len(part) - gradient.numel()
        part.grad = torch.nn.functional.pad(gradient.reshape(-1), (0, padding)) if padding else gradient.reshape(-1)
        self.optimiser.step()
        part.grad = None


Steps = Mapping[str, MatrixStep | touched_rows.TouchedRows]  # by the name of the matrix


def take_over(
    resident: Resident,
    optimiser: torch.optim.Optimizer,
    terms: Sequence[LocalTerm],
    batches: Sequence[npt.NDArray[np.int64]],
) -> Steps:
    """Take the large matrices from a fresh optimiser of the flat buffer, which keeps all else.

    Returns what makes a step of each with its gradient; nothing where something needs the whole gradient of a step.
    `batches`: the examples of the steps.
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
    make = functools.partial(kind, lr=config.learning_rate, weight_decay=config.weight_decay, **options)
    of_tokens: dict[str, touched_rows.TouchedRows] = {}
    if config.weight_decay == 0 and not config.compile and resident.token_table is not None:
        name, table = resident.token_table
        ids = touched_rows.ids(table, resident.train, batches) if name in large else None
        if ids is not None:
            of_tokens[name] = touched_rows.TouchedRows(table, ids, lambda rows: make([rows]))
    return {name: of_tokens.get(name) or MatrixStep(make([_part(model, span)])) for name, span in large.items()}


@contextlib.contextmanager
def gradients(model: FlatModel, steps: Steps) -> Iterator[None]:
    """As `FlatModel.new_gradient`: inside this context, the backward pass makes the steps of matrices."""
    with contextlib.ExitStack() as stack:
        for step in steps.values():
            if isinstance(step, touched_rows.TouchedRows):
                stack.enter_context(step.sparse())
        stack.enter_context(model.new_gradient(steps))
        yield


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
