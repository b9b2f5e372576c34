"""The token store: all token ids of a split in one flat, memory-mapped array; padded batches out of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl import seeds

WINDOW = 50  # batches that are length-grouped together: the window that the Hugging Face Trainer uses
_CHUNK = 1000  # texts given to the tokenizer at once; it spreads them over its threads


class Batch(NamedTuple):
    input_ids: torch.Tensor  # (B, T) int64, padded on the right to the batch's longest text
    attention_mask: torch.Tensor  # (B, T) int64, 1 on tokens, 0 on padding
    labels: torch.Tensor  # (B,) int64


class TokenStore:
    """Token ids of N texts: `tokens[offsets[i]:offsets[i + 1]]` is text i. Files are mapped, not read."""

    def __init__(self, folder: Path, pad_token_id: int):
        self.tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self.offsets = np.load(folder / "offsets.npy")  # (N + 1,) int64
        self.labels = np.load(folder / "labels.npy")  # (N,) int64
        self.pad_token_id = pad_token_id

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per text (N,), special tokens included."""
        return np.diff(self.offsets)

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Gather the texts `indices` (B,) into one padded batch."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        positions = np.arange(lengths.max())
        mask = positions < lengths[:, None]  # (B, T)
        input_ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        input_ids[mask] = self.tokens[(starts[:, None] + positions)[mask]]
        return Batch(
            torch.from_numpy(input_ids),
            torch.from_numpy(mask.astype(np.int64)),
            torch.from_numpy(self.labels[indices]),
        )


def write(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[str],
    labels: npt.NDArray[np.int64],
    max_seq_len: int,
) -> None:
    """Tokenise `texts`, cut to `max_seq_len` tokens, into a new store at `folder`."""
    dtype = np.min_scalar_type(len(tokenizer) - 1)  # uint16 for vocabularies up to 65,536
    chunks: list[npt.NDArray[np.unsignedinteger]] = []
    lengths: list[int] = []
    for start in range(0, len(texts), _CHUNK):
        encoded = tokenizer(
            list(texts[start : start + _CHUNK]),
            truncation=True,
            max_length=max_seq_len,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        chunks.append(np.concatenate([np.array(ids, dtype) for ids in encoded]))
        lengths.extend(map(len, encoded))
    folder.mkdir(parents=True)
    np.save(folder / "tokens.npy", np.concatenate(chunks))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "labels.npy", labels)


def training_batches(
    store: TokenStore,
    shard: npt.NDArray[np.int64],
    batch_size: int,
    group_by_length: bool,
    seed: int,
    *path: int,
) -> list[npt.NDArray[np.int64]]:
    """One epoch over a shard: index arrays of `batch_size`, the last one possibly smaller, each example once.

    The order is a function of (seed, *path), where `path` is (round, site, epoch). With `group_by_length`,
    windows of 50 batches of the shuffled shard are sorted by length and cut into batches, which are shuffled.
    """
    rng = seeds.generator(seed, "order", *path)
    order = rng.permutation(shard)
    if not group_by_length:
        return _cut(order, batch_size)
    lengths = store.lengths
    batches = []
    for window in _cut(order, WINDOW * batch_size):
        batches += _cut(window[np.argsort(-lengths[window], kind="stable")], batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(store: TokenStore, batch_size: int) -> list[npt.NDArray[np.int64]]:
    """The whole store in fixed batches, longest texts first: the same for any number of sites."""
    return _cut(np.argsort(-store.lengths, kind="stable"), batch_size)


def _cut(indices: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
