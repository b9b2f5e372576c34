"""Weighted sums of deltas, in float32 or in fixed point.

Sums of floats depend on the order of the addends, so that the same sites on other workers would give another last bit.
In fixed point they don't: each weighted delta is cut to whole multiples of 2^-48, and sums of whole numbers are
exact. They can't overflow: weights sum to 1, and each |delta| stays below 2^14, so that the sum stays below 2^62.
"""

from collections.abc import Sequence

import numpy as np
import torch

from scaling_fl.errors import JobFailed

_FIXED_POINT_SCALE = 2.0**48
MAX_DELTA = 2.0**14
# float32 values that are worked on at once. On CPUs 1 MiB: what a core's cache holds while others are added into it; on
# GPUs, where each piece costs the launch of some kernels, 16 MiB.
CHUNK = {"cpu": 2**18, "cuda": 2**22}


class WeightedSum:
    """Σ weight × delta over the sites that one worker trains in a round; all workers' weights together sum to 1.

    `buffer` (size,) takes the sum: float32, or int64 in fixed point. With `single_site`, the worker has one site at most, and
    its delta stays as it is where it lies, with the weight beside it as `scale`: who reads it multiplies.
    """

    def __init__(self, buffer: torch.Tensor, single_site: bool):
        self.buffer, self.single_site, self.scale = buffer, single_site, 0.0  # 0: there is nothing in it
        self.sites: list[int] = []
        self.largest_delta: dict[int, float] = {}  # |delta| of a site, where the row no longer tells it

    def add(self, site: int, delta: torch.Tensor, weight: float) -> None:
        """Add the delta (size,) of a site, which may lie in the row already if it is the only one."""
        if self.single_site:
            if delta.data_ptr() != self.buffer.data_ptr():
                self.buffer.copy_(delta)
            self.scale = weight
        else:
            delta = delta.to(self.buffer.device)
            self.largest_delta[site] = max_abs(delta).item()
            length = CHUNK[self.buffer.device.type]
            for start in range(0, len(delta), length):
                piece = slice(start, start + length)
                accumulate(self.buffer[piece], delta[piece], weight, first=not self.sites)
            self.scale = 1.0
        self.sites.append(site)

    def diverged_sites(self, limit: float) -> list[int]:
        """Those with a delta that isn't finite, or reaches `limit`."""
        if self.single_site:
            return [site for site in self.sites if not max_abs(self.buffer).item() < limit]
        return [site for site, value in self.largest_delta.items() if not value < limit]


def divergence_error(sites: Sequence[int], limit: float = float("inf")) -> JobFailed:
    """What it means that the deltas of these sites aren't finite, or reach `limit`."""
    return JobFailed(
        f"the parameters of site {' or '.join(map(str, sites))} are no longer finite numbers after local "
        f"training{f', or moved by {limit:g} or more' * (limit < float('inf'))}; lower learning_rate, and look for broken "
        "texts or labels"
    )


def accumulate(total: torch.Tensor, addend: torch.Tensor, scale: float, first: bool) -> None:
    """total ← total + scale × addend, or scale × addend if it is the first. (n,) each.

    A float32 `addend` is put into fixed point where `total` is; one that is in fixed point has scale 1.
    """
    if total.dtype == torch.int64:
        scaled = addend if addend.dtype == torch.int64 else addend.mul(scale * _FIXED_POINT_SCALE)
        if first:
            total.copy_(scaled)  # cuts as long() does
        else:
            _add_int64(total, scaled.long())
    elif first:
        torch.mul(addend, scale, out=total)
    else:
        total.add_(addend, alpha=scale)


def _add_int64(total: torch.Tensor, addend: torch.Tensor) -> None:
    """total ← total + addend, int64 (n,) each.

    torch multiplies each addend by `alpha`, even by 1, and vector units have to piece a product of 64 bits together: its
    sum takes 2 to 3 times as long as numpy's, which has one thread.
    """
    if total.device.type == "cpu" and torch.get_num_threads() <= 2:
        np.add(total.numpy(), addend.numpy(), out=total.numpy())
    else:
        total.add_(addend)


def to_float(total: torch.Tensor) -> torch.Tensor:
    """A sum as float32."""
    return total.mul(1 / _FIXED_POINT_SCALE) if total.dtype == torch.int64 else total


def max_abs(values: torch.Tensor) -> torch.Tensor:
    """The largest |value|; NaN if one is NaN."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)
