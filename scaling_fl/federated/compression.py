"""Compression of what travels: values as a receiver gets them, and the bytes that they take.

- bf16: the upper half of float32, rounded at random to one of the two neighbours, so that the expected value is exact.
- int8: blocks of 256 values share a float32 scale, max |value| / 127. Each value is rounded at random to one of the two
  whole numbers of scales beside it (QSGD: Alistarh et al. 2017, with the largest value as norm).
- topk: the share of the values with the largest |value|, as pairs of a 32-bit index and a float32; the others are 0.
"""

import math

import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated.privacy import masks
from scaling_fl.models.adapters import is_delta
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.models.selection import personal_positions

BLOCK = 256  # values that share a scale: 1.6 % more bytes
_LEVELS = 127
_CHUNK = 2**12 * BLOCK  # values that are rounded at a time, so that random numbers take little memory


def compress(kind: str, values: torch.Tensor, seed: int, num_kept: int = 0) -> None:
    """Replace `values` (n,) float32 in place by what a receiver gets. `seed` drives the rounding; `num_kept`: for topk."""
    generator = torch.Generator(values.device).manual_seed(seed)
    if kind == "topk":
        kept = values.abs().topk(num_kept).indices
        chosen = values[kept]
        values.zero_()
        values[kept] = chosen
    for start in range(0, len(values), _CHUNK) if kind in ("bf16", "int8") else ():
        chunk = values[start : start + _CHUNK]
        chunk.copy_(_bf16(chunk, generator) if kind == "bf16" else _int8(chunk, generator))


def _bf16(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    bits = values.view(torch.int32)
    noise = torch.randint(0, 2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    return ((bits + noise) & -(2**16)).view(torch.float32)


def _int8(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    padded = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    scales = padded.abs().amax(dim=1, keepdim=True) / _LEVELS
    noise = torch.rand(padded.shape, device=padded.device, generator=generator)
    levels = (padded / scales.clamp(min=torch.finfo(torch.float32).tiny) + noise).floor_().clamp_(-_LEVELS, _LEVELS)
    return (levels * scales).view(-1)[: len(values)]


def num_bytes(kind: str, count: int, topk_share: float = 1.0) -> int:
    """The bytes of `count` values."""
    match kind:
        case "bf16":
            return 2 * count
        case "int8":
            return count + 4 * -(-count // BLOCK)
        case "topk":
            return 8 * num_kept(count, topk_share)
    return 4 * count


def traffic(config: Config, layout: Layout, extra: int, num_sites: int = 1, absent: int = 0) -> tuple[int, int]:
    """The bytes that a site receives, and those that it sends, in a round in which it takes part. Personal parameters stay.

    `extra`: values that a method sends beside the parameters, as float32. Float buffers are sent as float32, too. Frozen
    parameters never change, so they don't travel, but for what aggregation adds to the base: the server sends it.
    `num_sites` take part, which secure aggregation depends on. `absent`: trained values that the site hasn't.
    """
    if config.baseline is not None:
        return 0, 0
    trained = num_travelling(config, layout) - absent
    others = extra + sum(
        math.prod(entry.shape)
        for entry in layout.entries
        if entry.start >= layout.trained and entry.name not in layout.fixed
    )
    added = sum(math.prod(entry.shape) for entry in layout.entries if is_delta(entry.name))
    down = num_bytes(config.download, trained) + 4 * (others + added)
    up = num_bytes(config.upload, trained, config.topk_share) + 4 * others
    if config.secure_aggregation:
        more_down, more_up = masks.num_bytes(num_sites, trained + others)
        down, up = down + more_down, up + more_up
    return down, up


def num_travelling(config: Config, layout: Layout) -> int:
    """The trained values that travel: without personal ones, and without gaps between tensors."""
    trained = sum(math.prod(entry.shape) for entry in layout.entries if entry.start < layout.trained)
    return trained - (len(personal_positions(layout, config.personal)) if config.personal is not None else 0)


def num_kept(count: int, share: float) -> int:
    """The values that topk keeps of `count`."""
    return max(1, round(share * count))
