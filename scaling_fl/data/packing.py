"""Blocks for language models: a site's documents, one after another in seeded order, cut into rows of one length.

No token is lost, and none is padded but in a site's last block. A block may begin and end within a document. Its first token
has nothing before it, so it isn't predicted.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scaling_fl import seeding
from scaling_fl.data.subsets import Indices
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError


def pack(
    documents: TokenStore, groups: Sequence[Indices], length: int, seed: int, target: Path, name: str
) -> list[Indices]:
    """Write the store `target` of blocks with up to `length` (≥ 2) tokens; return the rows of each group's blocks.

    No block has documents of two groups. Documents end with a token of their own. `name` is part of the seed. Raises
    `UserError` if a group has fewer than two tokens.
    """
    if length < 2:
        raise UserError(f"max_seq_len={length}: a block of one token has nothing to predict; raise it")
    target.mkdir(parents=True)
    ends, num_bytes, rows = list[int](), list[int](), list[Indices]()
    position = 0
    with open(target / "tokens.bin", "wb") as file:
        for number, group in enumerate(groups):
            order = seeding.generator(seed, f"pack {name}", number).permutation(group)
            lengths = documents.lengths[order]
            stops = _stops(int(lengths.sum()), length)
            if len(order) and stops[-1] < 2:
                raise UserError(
                    "a site's only document is empty, so there is nothing to predict; use other shards or data"
                )
            for document in order:
                file.write(documents.tokens[slice(*documents.offsets[document : document + 2])].tobytes())
            of_block = np.searchsorted(stops, np.cumsum(lengths), side="left")  # in which each document ends
            num_bytes += np.bincount(of_block, documents.num_bytes[order], len(stops)).astype(np.int64).tolist()
            rows.append(np.arange(len(ends), len(ends) + len(stops)))
            ends += (position + stops).tolist()
            position += int(lengths.sum())
    predicted = np.ones(position, np.uint8)
    offsets = np.array([0, *ends], np.int64)
    predicted[offsets[:-1]] = 0
    predicted.tofile(target / "predicted.bin")
    np.save(target / "offsets.npy", offsets)
    np.save(target / "labels.npy", np.zeros(len(ends), np.int64))
    np.save(target / "bytes.npy", np.array(num_bytes, np.int64))
    np.save(target / "dtype.npy", np.empty(0, documents.tokens.dtype))
    return rows


def _stops(total: int, length: int) -> Indices:
    """Where blocks of `length` tokens end. A last block of one token would predict nothing: it gets another."""
    stops = np.append(np.arange(length, total, length), total)[: None if total else 0]
    if len(stops) > 1 and stops[-1] - stops[-2] == 1:
        stops[-2] -= 1
    return stops.astype(np.int64)
