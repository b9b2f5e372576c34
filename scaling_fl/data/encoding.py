"""Tokenising in chunks, by a tokenizer of transformers or by its core alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from scaling_fl.progress import Progress

_CHUNK = 1000  # texts per tokenizer call, which spreads them over its threads
_TRIAL = 100  # texts on which two ways to encode are compared


def encode(
    tokenizer: Any,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_seq_len: int | None,
    token_types: bool = False,
    report: Progress = lambda done, total, unit: None,
) -> Iterator[Any]:
    """Tokenise in chunks. Each has lists of "input_ids", and with `token_types` also of "token_type_ids".

    Texts or pairs are truncated to `max_seq_len` tokens, the longer text of a pair first; None: no truncation.
    """
    bare: Callable[..., Any] | None = None
    for start in range(0, len(texts), _CHUNK):
        chunk = list(texts[start : start + _CHUNK])
        seconds = None if pairs is None else list(pairs[start : start + _CHUNK])
        if bare is None:
            encoded = tokenizer(
                chunk, seconds, truncation=max_seq_len is not None, max_length=max_seq_len,
                return_attention_mask=False, return_token_type_ids=token_types,
            )  # fmt: skip
            bare = _bare_encoder(tokenizer, chunk[:_TRIAL], None if seconds is None else seconds[:_TRIAL], encoded)
        else:
            encoded = bare(chunk, seconds)
        yield encoded
        report(min(start + _CHUNK, len(texts)), len(texts), "texts")


def _bare_encoder(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, expected: Any
) -> Callable[..., dict[str, Any]] | None:
    """The tokenizer without its wrapper in transformers and without places in the text, which take a third of the time.

    The call that made `expected` has left the same settings in it. None unless it encodes `texts` to the same tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None

    def encoded(texts: list[str], pairs: list[str] | None) -> dict[str, Any]:
        found = backend.encode_batch_fast(texts if pairs is None else list(zip(texts, pairs, strict=True)))
        return {"input_ids": [each.ids for each in found], "token_type_ids": [each.type_ids for each in found]}

    found = encoded(texts, pairs)
    same = all(found.get(name) == list(values)[: len(texts)] for name, values in expected.items())
    return encoded if same else None
