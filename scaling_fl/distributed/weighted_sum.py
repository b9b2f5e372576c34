"""Weighted sums of deltas, in float32 or in fixed point.

Float sums depend on the order of the addends: the same sites on other workers would differ in the last bit. In fixed
point they don't: each weighted delta is truncated to a multiple of 2^-48, and integer sums are exact. They can't
overflow: the weights sum to 1 and each |delta| is below 2^14, so the sum is below 2^62.
"""

from collections.abc import Sequence

import numpy as np
import torch

from scaling_fl.distributed import fused_sum
from scaling_fl.errors import JobFailed

FIXED_POINT_SCALE = 2.0**48
MAX_DELTA = 2.0**14
# float32 values per chunk. On CPUs 1 MiB, which stays in a core's cache while addends stream through; on GPUs 16 MiB,
# because every chunk costs kernel launches.
CHUNK = {"cpu": 2**18, "cuda": 2**22}


class WeightedSum:
    """Σ weight × delta over the sites that one worker trains in a round. All workers' weights together sum to 1.

    `buffer` (size,) holds the sum: float32, or int64 in fixed point. With `single_site` there is at most one site: its
    unscaled float32 delta stays in `buffer`, and the reader multiplies it by `scale`.
    """

    def __init__(self, buffer: torch.Tensor, single_site: bool):
        self.buffer, self.single_site, self.scale = buffer, single_site, 0.0  # 0: empty
        self.of_params = False  # whether `buffer` holds the one site's parameters, of which the reader makes the delta
        self.sites: list[int] = []
        self.largest_delta: dict[int, float] = {}  # max |delta| by site, unless `buffer` still holds the one delta

    def add(self, site: int, row: torch.Tensor, weight: float, server: torch.Tensor | None = None) -> None:
        """Add a site's delta: `row` (size,), or `server` − `row`. With `single_site`, `row` may be `buffer` itself."""
        if self.single_site:
            if row.data_ptr() != self.buffer.data_ptr():
                self.buffer.copy_(row)
            self.scale, self.of_params = weight, server is not None
        else:
            row = row.to(self.buffer.device)
            length, largest = len(row) if self._in_one_pass else CHUNK[self.buffer.device.type], []
            for start in range(0, len(row), length):
                chunk = slice(start, start + length)
                part, of_server = row[chunk], None if server is None else server[chunk]
                if self.buffer.dtype != torch.int64 and of_server is not None:
                    part, of_server = of_server - part, None
                found = accumulate(self.buffer[chunk], part, weight, not self.sites, of_server)
                largest.append(max_abs(part) if found is None else found)
            self.largest_delta[site] = torch.stack(largest).max().item()
            self.scale = 1.0
        self.sites.append(site)

    @property
    def _in_one_pass(self) -> bool:
        """Whether a kernel takes a whole row without temporary memory: calling it for each piece takes time."""
        device = self.buffer.device
        return device.type == "cpu" and self.buffer.dtype == torch.int64 and not fused_sum.refusal(device)

    def diverged_sites(self, limit: float, largest: Sequence[float] | None) -> list[int]:
        """Return the sites whose delta isn't finite or reaches `limit`.

        `largest`: max |delta| of a single site, by slices. Without, `limit` is infinite, and the delta is taken to be finite
        if the buffer is: the server's parameters have changed meanwhile.
        """
        if self.single_site:
            values = [max_abs(self.buffer).item()] if largest is None else largest
            return self.sites if any(not value < limit for value in values) else []
        return [site for site, value in self.largest_delta.items() if not value < limit]


def divergence_error(sites: Sequence[int], limit: float = float("inf")) -> JobFailed:
    """Return the error for sites whose deltas aren't finite or reach `limit`."""
    *others, last = map(str, sites)
    named = f"sites {', '.join(others)} and {last}" if others else f"site {last}"
    return JobFailed(
        f"the parameters of {named} are no longer finite after local "
        f"training{f', or moved by {limit:g} or more' * (limit < float('inf'))}; lower learning_rate, and check for "
        "corrupt texts or labels"
    )


def accumulate(
    total: torch.Tensor, row: torch.Tensor, scale: float, first: bool, server: torch.Tensor | None = None
) -> torch.Tensor | None:
    """total ← total + scale × delta, or scale × delta if `first`; (n,) each. The delta is `row`, or `server` − `row`.

    If `total` is int64, a float32 delta is converted to fixed point, and its largest |value| is returned, NaN if any is
    NaN; an int64 `row` must have scale 1.
    """
    if total.dtype == row.dtype == torch.int64:
        if first:
            total.copy_(row)
        else:
            _add_int64(total, row)
        return None
    fixed = total.dtype == torch.int64
    if fixed and total.is_contiguous() and row.is_contiguous() and not fused_sum.refusal(total.device):
        return fused_sum.add_fixed(total, row, scale * FIXED_POINT_SCALE, first, server)
    delta = row if server is None else server - row
    if fixed:
        return _add_fixed(total, delta, scale * FIXED_POINT_SCALE, first)
    if first:
        torch.mul(delta, scale, out=total)
    else:
        total.add_(delta, alpha=scale)
    return None


def _add_fixed(total: torch.Tensor, delta: torch.Tensor, scale: float, first: bool) -> torch.Tensor:
    """As the kernels of `fused_sum`, by torch's operations."""
    scaled = delta.mul(scale)
    if first:
        total.copy_(scaled)  # truncates, as long() does
    else:
        _add_int64(total, scaled.long())
    return max_abs(delta)


def _add_int64(total: torch.Tensor, addend: torch.Tensor) -> None:
    """total ← total + addend, int64 (n,) each.

    torch multiplies each addend by `alpha` even if it is 1, and vector units lack a 64-bit product: its sum takes 2 to 3
    times as long as numpy's, which is single-threaded.
    """
    if total.device.type == "cpu" and torch.get_num_threads() <= 2:
        np.add(total.numpy(), addend.numpy(), out=total.numpy())
    else:
        total.add_(addend)


def to_float(total: torch.Tensor) -> torch.Tensor:
    """Convert a sum to float32."""
    return total.mul(1 / FIXED_POINT_SCALE) if total.dtype == torch.int64 else total


def max_abs(values: torch.Tensor) -> torch.Tensor:
    """Return the largest |value|; NaN if any value is NaN."""
    low, high = torch.aminmax(values)
    return torch.maximum(-low, high)


def as_int64_rows(rows: torch.Tensor) -> torch.Tensor:
    """View float32 rows as half as many int64 rows."""
    return rows.reshape(-1).view(torch.int64).view(len(rows) // 2, -1)
