"""Token stores: all token ids of a split in one flat, memory-mapped array, from which padded batches are gathered."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl import seeding
from scaling_fl.data.encoding import encode
from scaling_fl.errors import UserError
from scaling_fl.progress import Progress
from scaling_fl.text import one_line

WINDOW = 50  # batches per length-grouped window, as in the Hugging Face Trainer


class Batch(NamedTuple):
    """B texts, and what the model predicts of them: P = B labels, or P tokens, each from those before it."""

    input_ids: torch.Tensor  # (B, T) int64, padded to the batch's longest text
    attention_mask: torch.Tensor | None  # (B, T) int64, 1 on tokens, 0 on padding; None if all are 1
    labels: torch.Tensor  # (P,) int64: labels of texts, or ids of tokens
    token_type_ids: torch.Tensor | None = None  # (B, T) int64, 1 on the second text of a pair; None if all are 0
    positions: torch.Tensor | None = None  # (P,) int64 into B × T: of the tokens before the predicted ones

    def packed(self) -> tuple[torch.Tensor, Callable[[torch.Tensor], "Batch"]]:
        """All values as one tensor (n,) int64, and the function that makes the batch of a copy of it."""
        parts = {name: tensor for name, tensor in self._asdict().items() if tensor is not None}

        def restored(values: torch.Tensor) -> Batch:
            pieces = values.split([part.numel() for part in parts.values()])
            return self._replace(
                **{name: piece.view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)}
            )

        return torch.cat([part.flatten() for part in parts.values()]), restored


class TokenStore:
    """Token ids of N texts: `tokens[offsets[i]:offsets[i + 1]]` is text i. The files are memory-mapped.

    Batches are padded on the right, or on the `left`, and to `min_length` tokens at least; to a `multiple`, if the longest
    text is as long.
    """

    def __init__(self, folder: Path, pad_token_id: int, left: bool = False, min_length: int = 1, multiple: int = 1):
        dtype = np.load(folder / "dtype.npy").dtype
        self.tokens = np.memmap(folder / "tokens.bin", dtype, "r")
        self.offsets = np.load(folder / "offsets.npy")  # (N + 1,) int64
        self.labels = np.load(folder / "labels.npy")  # (N,) int64
        self.types = self._flags(folder / "types.bin")
        sizes = folder / "bytes.npy"
        self.num_bytes = (
            np.load(sizes) if sizes.exists() else np.zeros(len(self.labels), np.int64)
        )  # (N,), for documents
        self.predicted = self._flags(
            folder / "predicted.bin"
        )  # by token: 1 if the model predicts it; None: it classifies
        self.pad_token_id, self.left, self.min_length, self.multiple = pad_token_id, left, min_length, multiple

    def __len__(self) -> int:
        return len(self.labels)

    @staticmethod
    def _flags(path: Path) -> npt.NDArray[np.uint8] | None:
        return np.memmap(path, np.uint8, "r") if path.exists() else None

    @functools.cached_property
    def num_predictions(self) -> npt.NDArray[np.int64]:
        """What the model predicts of each text (N,): one label, or so many tokens."""
        if self.predicted is None:
            return np.ones(len(self), np.int64)
        ends = np.concatenate([[0], np.cumsum(self.predicted, dtype=np.int64)])
        return np.diff(ends[self.offsets])

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per text (N,), special tokens included."""
        return np.diff(self.offsets)

    @functools.cached_property
    def _longest(self) -> int:
        return int(self.lengths.max(initial=0))

    def batch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Gather the texts `indices` (B,) into one padded batch."""
        starts, lengths = self.offsets[indices], self.offsets[indices + 1] - self.offsets[indices]
        width = max(int(lengths.max()), self.min_length)
        width = max(width, min(-(-width // self.multiple) * self.multiple, self._longest))
        gaps = width - lengths[:, None] if self.left else np.zeros((len(lengths), 1), np.int64)
        positions = np.arange(width) - gaps  # (B, T): below 0 on padding on the left
        mask = (positions >= 0) & (positions < lengths[:, None])  # (B, T)
        sources = (starts[:, None] + positions)[mask]

        def padded(values: npt.NDArray[np.unsignedinteger], padding: int) -> torch.Tensor:
            rows = np.full(mask.shape, padding, dtype=np.int64)
            rows[mask] = values[sources]
            return torch.from_numpy(rows)

        input_ids, labels, places = padded(self.tokens, self.pad_token_id), torch.from_numpy(self.labels[indices]), None
        if self.predicted is not None:
            after = padded(self.predicted, 0).flatten().nonzero().flatten()
            labels, places = input_ids.flatten()[after], after - 1  # the first token of a text is never predicted
        return Batch(
            input_ids,
            torch.from_numpy(mask.astype(np.int64)),
            labels,
            None if self.types is None else padded(self.types, 0),
            places,
        )


def write(
    folder: Path,
    tokenizer: Any,
    texts: Sequence[str],
    labels: npt.NDArray[np.int64],
    max_seq_len: int | None,
    pairs: Sequence[str] | None = None,
    token_types: bool = False,
    end_token: int | None = None,
    report: Progress = lambda done, total, unit: None,
) -> None:
    """Tokenise texts or pairs into a new store at `folder`; see `encode`. Every text gets at least one token.

    `end_token`: the id that ends each text, which is then a document of a language model. Raises `UserError` if a text has
    a special token in it, which models take for the end of a text, for instance.
    """
    special = np.array([number for number in tokenizer.all_special_ids if number != tokenizer.unk_token_id], np.int64)
    (empty,) = next(encode(tokenizer, [""], None if pairs is None else [""], max_seq_len))["input_ids"]
    num_special, padding = np.isin(empty, special).sum(), np.array([tokenizer.pad_token_id])
    highest = max(tokenizer.get_vocab().values(), default=0)  # vocabularies with gaps have fewer tokens
    dtype = np.min_scalar_type(max(highest, len(tokenizer) - 1))  # uint16 for vocabularies up to 65,536
    lengths: list[int] = []
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
        tokens = files.enter_context(open(folder / "tokens.bin", "wb"))
        types = files.enter_context(open(folder / "types.bin", "wb")) if token_types else None
        for encoded in encode(tokenizer, texts, pairs, max_seq_len, token_types, report):
            rows = [np.array(ids, np.int64) for ids in encoded["input_ids"]]
            for number in np.flatnonzero(_count(rows, special) > num_special)[:1]:
                text = texts[len(lengths) + number] + (
                    f" … {pairs[len(lengths) + number]}" if pairs is not None else ""
                )
                place = f"text {len(lengths) + number + 1:,}, {one_line(text, 80)!r}"
                token = _surplus(tokenizer, rows[number].tolist(), empty, special)
                raise UserError(
                    f"{place}: the model's tokenizer takes {token} in it for a special token; remove it from the text, or use "
                    "another model"
                )
            if end_token is not None:
                rows = [row if len(row) and row[-1] == end_token else np.append(row, end_token) for row in rows]
            # A tokenizer without special tokens yields no token for an empty text; models reject an empty batch.
            rows = [row if len(row) else padding for row in rows]
            tokens.write(np.concatenate(rows).astype(dtype).data)
            if types is not None:
                types.write(np.concatenate([np.array(ids or [0], np.uint8) for ids in encoded["token_type_ids"]]).data)
            lengths.extend(map(len, rows))
    np.save(folder / "dtype.npy", np.empty(0, dtype))
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "labels.npy", labels)
    if end_token is not None:
        np.save(folder / "bytes.npy", np.array([len(text.encode()) for text in texts], np.int64))


def _count(rows: Sequence[npt.NDArray[np.int64]], wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many of the ids in each row are `wanted` ones."""
    found = np.isin(np.concatenate([np.empty(0, np.int64), *rows]), wanted)
    before = np.concatenate([[0], np.cumsum(found)])
    return np.diff(before[np.concatenate([[0], np.cumsum([len(row) for row in rows])])])


def _surplus(tokenizer: Any, ids: Sequence[int], empty: Sequence[int], special: npt.NDArray[np.int64]) -> str:
    """The first special token that is there more often than in the empty text."""
    surplus = Counter(number for number in ids if number in special) - Counter(empty)
    return str(tokenizer.convert_ids_to_tokens(next(iter(surplus))))


def training_batches(
    store: TokenStore,
    shard: npt.NDArray[np.int64],
    batch_size: int,
    group_by_length: bool,
    seed: int,
    *path: int,
) -> list[npt.NDArray[np.int64]]:
    """One epoch over a shard: index arrays of `batch_size`, with each example once; one batch may be smaller.

    The order is a function of (seed, *path), where `path` is (round, site, epoch). With `group_by_length`,
    windows of 50 batches of the shuffled shard are sorted by length and divided into batches, which are shuffled.
    """
    rng = seeding.generator(seed, "order", *path)
    order = rng.permutation(shard)
    if not group_by_length:
        return _chunks(order, batch_size)
    batches = []
    for window in _chunks(order, WINDOW * batch_size):
        lengths = store.offsets[window + 1] - store.offsets[window]
        batches += _chunks(window[np.argsort(-lengths, kind="stable")], batch_size)
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(
    store: TokenStore, examples: npt.NDArray[np.int64], batch_size: int
) -> list[npt.NDArray[np.int64]]:
    """The examples in fixed batches, longest texts first: the same for any number of sites."""
    return _chunks(examples[np.argsort(-store.lengths[examples], kind="stable")], batch_size)


def _chunks(indices: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]
