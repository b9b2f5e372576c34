"""Texts as tokens, in chunks: by the core of a tokenizer where it does the same as transformers' wrapper."""

from typing import Any

import pytest

from scaling_fl.data import encoding
from tests import builders


def test_texts_are_encoded_without_truncation_on_request() -> None:
    seen: list[tuple[float, float, str]] = []
    chunks = encoding.encode(builders.tokenizer(), ["river " * 20] * 1500, None, None, report=lambda *a: seen.append(a))
    assert [len(ids) for chunk in chunks for ids in chunk["input_ids"]] == [22] * 1500
    assert seen == [(1000, 1500, "texts"), (1500, 1500, "texts")]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("length", [None, 7])
def test_the_core_encodes_as_the_wrapper_does(
    monkeypatch: pytest.MonkeyPatch, paired: bool, length: int | None
) -> None:
    monkeypatch.setattr(encoding, "_CHUNK", 8)
    texts, words = builders.texts_and_labels(30, 3)[0], builders.tokenizer()
    pairs = texts[::-1] if paired else None
    whole = words(texts, pairs, truncation=length is not None, max_length=length, return_token_type_ids=True)
    calls = count_calls(words, monkeypatch)
    found = list(encoding.encode(words, texts, pairs, length, token_types=True))
    for name in ("input_ids", "token_type_ids"):
        assert [row for chunk in found for row in chunk[name]] == whole[name]
    assert len(calls) == 1, "later chunks take the core alone"


def test_a_wrapper_that_does_something_else_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_CHUNK", 8)
    texts, words = builders.texts_and_labels(30, 3)[0], builders.tokenizer()
    calls = count_calls(words, monkeypatch, change=lambda ids: [*ids, 5])
    found = [ids for chunk in encoding.encode(words, texts, None, None) for ids in chunk["input_ids"]]
    assert len(calls) == 4
    assert all(ids[-1] == 5 for ids in found)


def count_calls(words: Any, monkeypatch: pytest.MonkeyPatch, change: Any = lambda ids: ids) -> list[int]:
    """The sizes of the chunks that the wrapper encodes, whose ids it changes."""
    calls, encode = list[int](), type(words).__call__

    def call(self: Any, texts: list[str], *others: Any, **more: Any) -> Any:
        calls.append(len(texts))
        encoded = encode(self, texts, *others, **more)
        encoded["input_ids"] = [change(ids) for ids in encoded["input_ids"]]
        return encoded

    monkeypatch.setattr(type(words), "__call__", call)
    return calls
