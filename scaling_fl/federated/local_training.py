"""Local steps: forward and backward passes over batches, the terms of methods, and an optimiser's steps."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.federated import step_in_backward
from scaling_fl.federated.algorithms import LocalTerm
from scaling_fl.federated.resident import Resident, precision


class Trained(NamedTuple):
    """What local steps leave beside the parameters. Reading a tensor makes the CPU wait for the GPU."""

    loss_sum: torch.Tensor  # (), float64: over all predictions, each as often as it was made
    num_correct: torch.Tensor  # (), int64
    num_predictions: int


def train_steps(
    resident: Resident,
    optimiser: torch.optim.Optimizer,
    batches: Iterable[npt.NDArray[np.int64]],
    rates: Sequence[float],
    terms: Sequence[LocalTerm] = (),
    counted: bool = True,
) -> Trained:
    """Train the resident model in place: a step for each batch of indices of examples, with its learning rate of `rates`.

    Dropout follows torch's global generator. `counted`: whether the progress of the round counts these steps.
    """
    config, model = resident.config, resident.model
    model.module.train()
    # Lower than torch's 2^16: the scaler restarts every round, and a site may have too few steps to lose any to
    # overflows.
    fp16 = precision(config, resident.device) == "fp16"
    scaler = torch.amp.GradScaler(resident.device.type, init_scale=2.0**12, enabled=fp16)
    loss_sum = torch.zeros((), dtype=torch.float64, device=resident.device)
    num_correct = torch.zeros((), dtype=torch.int64, device=resident.device)
    num_predictions = 0
    batches = list(batches)
    of_matrices = step_in_backward.take_over(resident, optimiser, terms, batches)
    optimisers = [optimiser, *(step.optimiser for step in of_matrices.values())]
    for rate, indices in zip(rates, batches, strict=True):
        of_batch = int(resident.train.num_predictions[indices].sum())
        num_predictions += of_batch
        for group in [group for each in optimisers for group in each.param_groups]:
            group["lr"] = rate
        with step_in_backward.gradients(model, of_matrices):
            for micro_batch in np.array_split(indices, min(config.gradient_accumulation_steps, len(indices))):
                batch = resident.to_device(resident.train.batch(micro_batch))
                logits, labels = resident.logits(batch), batch.labels
                for term in terms:
                    labels = term.labels(labels, logits.shape[1])
                loss = cross_entropy(logits, labels, reduction="sum")
                loss_sum += loss.detach()
                num_correct += (logits.detach().argmax(-1) == labels).sum()
                del logits  # the backward pass doesn't need them, and those of a language model are large
                scaler.scale(loss / of_batch).backward()
        if terms or config.max_grad_norm is not None:
            scaler.unscale_(optimiser)
        for term in terms:
            term.add_gradient(model.gradient, model.flat)
        if config.max_grad_norm is not None:
            clip(model.gradient, config.max_grad_norm)
        scaler.step(optimiser)
        scaler.update()
        resident.on_step() if counted else resident.on_alive()
    return Trained(loss_sum, num_correct, num_predictions)


def clip(gradient: torch.Tensor, max_norm: float) -> None:
    """Clip the flat gradient (size,) in place to Euclidean norm `max_norm`.

    Equivalent to `torch.nn.utils.clip_grad_norm_`; the CPU doesn't wait for the GPU.
    """
    gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
