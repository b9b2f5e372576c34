"""Gaussian noise: from the operating system's cryptographic generator, or repeatable for studies."""

import os

import numpy as np
import torch

from scaling_fl import seeding

_CHUNK = 2**20  # values at a time, in float64


def gaussian(count: int, seed: int | None, round_: int) -> torch.Tensor:
    """Standard normal values (count,) float32. Without `seed`, nobody can draw them again."""
    noise = np.empty(count, np.float32)
    rng = None if seed is None else seeding.generator(seed, "dp noise", round_)
    for start in range(0, count, _CHUNK):
        chunk = noise[start : start + _CHUNK]
        chunk[:] = _from_system(len(chunk)) if rng is None else rng.standard_normal(len(chunk))
    return torch.from_numpy(noise)


def _from_system(count: int) -> np.ndarray:
    """By the method of Box and Muller (1958) from 53-bit uniform numbers above 0, up to 1."""
    pairs = -(-count // 2)
    bits = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs)
    radius, angle = ((bits >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    radius = np.sqrt(-2 * np.log(radius))
    return np.concatenate([radius * np.cos(2 * np.pi * angle), radius * np.sin(2 * np.pi * angle)])[:count]
