"""Compare a kernel with torch's operations, and print what differs: the module and the device are in the command line.

With TRITON_INTERPRET=1, Triton's device may be the CPU.
"""

import importlib
import math
import sys

import torch

from scaling_fl.distributed.weighted_sum import max_abs

SCALE = 0.3 * 2.0**48


def rows(size: int) -> list[torch.Tensor]:
    """Three rows of values of all magnitudes up to 2^14, some of them zeros of either sign and subnormal."""
    generator = torch.Generator().manual_seed(size)
    magnitudes = torch.rand(3, size, generator=generator).mul_(60).sub_(46).exp2_()
    values = magnitudes * torch.randn(3, size, generator=generator).sign_()
    values[0, ::7], values[1, ::5], values[2, -1] = 0.0, -0.0, 1e-44
    return list(values)


def main(name: str, device: str) -> None:
    add_fixed = importlib.import_module(f"scaling_fl.distributed.{name}").add_fixed
    for size in (1, 2, 15, 1023, 1024, 2053):
        total, expected = torch.full((size + 1,), 7, device=device), torch.zeros(size, dtype=torch.int64)
        for number, row in enumerate(rows(size)):
            largest = add_fixed(total[:size], row.to(device), SCALE, first=number == 0)
            expected += row.mul(SCALE).long()
            if largest.item() != max_abs(row).item():
                print(f"{size} values: the largest is {largest.item()}, not {max_abs(row).item()}")
        if different := int((total[:size].cpu() != expected).sum()):
            print(f"{size} values: {different} sums differ")
        server = rows(size + 1)[0][:size]
        for row in rows(size):
            largest = add_fixed(total[:size], row.to(device), SCALE, False, server.to(device))
            expected += (server - row).mul(SCALE).long()
            if largest.item() != max_abs(server - row).item():
                print(f"{size} values: the largest difference is {largest.item()}, not {max_abs(server - row).item()}")
        if different := int((total[:size].cpu() != expected).sum()):
            print(f"{size} values: {different} sums of differences differ")
        if total[-1] != 7:
            print(f"{size} values: the value behind them was overwritten")
    for value in (math.inf, -math.inf, math.nan):
        row = rows(2000)[0]
        row[1500] = value
        total = torch.zeros(2000, dtype=torch.int64, device=device)
        largest = add_fixed(total, row.to(device), SCALE, first=False).item()
        if not (math.isnan(largest) if math.isnan(value) else largest == math.inf):
            print(f"{value} among the addends: the largest is {largest}")


if __name__ == "__main__":
    main(*sys.argv[1:])
