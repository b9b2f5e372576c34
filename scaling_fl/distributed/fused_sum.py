"""One pass over memory for sums in fixed point.

Operation by operation, torch moves about 48 bytes a value: it looks for the largest delta, scales, converts and adds.
The kernels read a delta (4 bytes), or what it is the difference of, and the sum (8), and write the sum (8).
"""

import functools

import torch

from scaling_fl.distributed import fused_sum_c, fused_sum_triton

_NUM_TRIED = 5000  # values of the trial


mean_fixed = fused_sum_c.mean_fixed


def add_fixed(
    total: torch.Tensor, row: torch.Tensor, scale: float, first: bool, server: torch.Tensor | None = None
) -> torch.Tensor:
    """total ← total + scale × delta, truncated, or without total if `first`; int64 and float32, contiguous, (n,) each.

    The delta is `row`, or `server` − `row`. Returns the largest |delta|, NaN if any is NaN, as a tensor of one value on
    the same device.
    """
    of_device = fused_sum_triton if total.is_cuda else fused_sum_c
    return of_device.add_fixed(total, row, scale, first, server)


@functools.cache
def refusal(device: torch.device) -> str:
    """Why there is no kernel for `device`, by a trial against torch's operations; empty if there is one."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(4, _NUM_TRIED, generator=generator) - 0.5).to(device)
    total = torch.empty(_NUM_TRIED, dtype=torch.int64, device=device)
    scale = 0.3 * 2.0**48
    try:
        found = [add_fixed(total, row, scale, first=number == 0) for number, row in enumerate(values)]
        same = torch.equal(total, values.mul(scale).long().sum(0))
        same &= [value.item() for value in found] == values.abs().amax(1).tolist()
        if device.type == "cpu":
            mean, server = torch.empty(_NUM_TRIED), values[0]
            largest = mean_fixed(mean, list(values), [scale] * 4, [None, None, server, server])
            deltas = torch.stack([*values[:2], *(server - values[2:])])
            same &= torch.equal(largest, deltas.abs().amax(1))
            same &= torch.equal(mean, deltas.mul(scale).long().sum(0).mul(2.0**-48))
    except Exception as error:  # neither Triton nor torch say what they raise where there is no compiler
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if same else "its sums differ from torch's"
