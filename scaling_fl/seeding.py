"""Random streams derived from (seed, purpose, round, site, …), so that no generator state has to be saved.

Streams of different purposes or paths are independent (numpy's `SeedSequence` hashes all entries).
"""

import zlib

import numpy as np


def sequence(seed: int, purpose: str, *path: int) -> np.random.SeedSequence:
    """The seed of one stream: `purpose` is a word such as "order", `path` holds the numbers that identify the stream."""
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), len(path), *path])


def generator(seed: int, purpose: str, *path: int) -> np.random.Generator:
    """A numpy generator for one stream."""
    return np.random.Generator(np.random.PCG64(sequence(seed, purpose, *path)))


def torch_seed(seed: int, purpose: str, *path: int) -> int:
    """A 63-bit seed for `torch.manual_seed`."""
    return int(sequence(seed, purpose, *path).generate_state(1, np.uint64)[0] >> np.uint64(1))
