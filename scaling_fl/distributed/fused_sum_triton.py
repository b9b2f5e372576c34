"""The sum in fixed point on GPUs, by a kernel of Triton, which CUDA builds of torch bring along."""

import functools
from typing import Any

import torch

BLOCK = 1024  # values per program


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


def add_fixed(
    total: torch.Tensor, row: torch.Tensor, scale: float, first: bool, server: torch.Tensor | None = None
) -> torch.Tensor:
    """As `fused_sum.add_fixed`, on a GPU."""
    addend = row if server is None else server - row
    largest = torch.zeros((), dtype=torch.int32, device=total.device)
    size = len(total)
    kernel()[(-(-size // BLOCK),)](total, addend, largest, scale, size, FIRST=first, WIDTH=BLOCK)
    return largest.view(torch.float32)
