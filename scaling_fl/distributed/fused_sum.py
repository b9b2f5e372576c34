"""One pass over GPU memory for sums in fixed point, by a kernel of Triton, which CUDA builds of torch bring along.

Operation by operation, torch moves about 48 bytes a value: it looks for the largest delta, scales, converts and adds.
The kernel reads a delta (4 bytes) and the sum (8), and writes the sum (8).
"""

import functools
from typing import Any

import torch

BLOCK = 1024  # values per program
_NUM_TRIED = 3 * BLOCK + 17  # values of the trial


@functools.cache
def kernel() -> Any:
    """The compiled kernel of Triton. Raises ImportError without Triton."""
    import triton
    import triton.language as tl

    @triton.jit
    def add(total, addend, largest, scale, size, FIRST: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
        inside = at < size
        value = tl.load(addend + at, mask=inside, other=0.0)
        fixed = (value * scale).to(tl.int64)  # truncates
        if not FIRST:
            fixed += tl.load(total + at, mask=inside, other=0)
        tl.store(total + at, fixed, mask=inside)
        # The bits of |value|, as whole numbers, are in the order of the values, infinity and NaN above all.
        tl.atomic_max(largest, tl.max(tl.abs(value).to(tl.int32, bitcast=True), axis=0))

    return add


def add_fixed(total: torch.Tensor, addend: torch.Tensor, scale: float, first: bool) -> torch.Tensor:
    """total ← total + ⌊scale × addend⌋ towards 0, or without total if `first`; total int64, addend float32, (n,) each.

    Returns the largest |addend|, NaN if any is NaN, as a tensor of one value on the same device.
    """
    largest = torch.zeros((), dtype=torch.int32, device=total.device)
    size = len(total)
    kernel()[(-(-size // BLOCK),)](total, addend, largest, scale, size, FIRST=first, WIDTH=BLOCK)
    return largest.view(torch.float32)


@functools.cache
def refusal(device: torch.device) -> str:
    """Why the kernel can't be used on `device`, by a trial against torch's operations; empty if it can."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(2, _NUM_TRIED, generator=generator) - 0.5).to(device)
    total = torch.empty(_NUM_TRIED, dtype=torch.int64, device=device)
    scale = 0.3 * 2.0**48
    try:
        found = [add_fixed(total, row, scale, first=number == 0) for number, row in enumerate(values)]
        same = torch.equal(total, values.mul(scale).long().sum(0))
        same &= [value.item() for value in found] == values.abs().amax(1).tolist()
    except Exception as error:  # Triton is absent, or has no C compiler, or doesn't know the GPU
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return "" if same else "its sums differ from torch's"
