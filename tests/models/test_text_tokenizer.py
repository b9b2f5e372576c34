"""Special tokens in texts are text: in the program, and in a tokenizer that it has saved."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from scaling_fl.data import token_store
from scaling_fl.errors import UserError
from scaling_fl.models import loading, tiny
from scaling_fl.models.text_tokenizer import load_text_tokenizer, with_padding_token
from scaling_fl.models.tiny import tiny_tokenizer
from tests import builders

_PIECES = ["▁", *"</s>[]SEPCLunkclep", "▁river", "▁stone"]


def unigram(kind: Any, *special: str) -> Any:
    """A tokenizer as SentencePiece files have it: special tokens come first, with the score 0."""
    scores = [(piece, -3 - number / 10) for number, piece in enumerate(dict.fromkeys(_PIECES))]
    return kind(vocab=[*((token, 0.0) for token in special), *scores])


def test_the_tiny_vocabulary_depends_on_the_words_and_not_on_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Words that occur equally often are in alphabetical order; the most frequent come first."""
    texts = ["stone river", "river forest", "meadow"]
    first, second = (tiny_tokenizer(given).get_vocab() for given in (texts, [*reversed(texts)]))
    assert first == second
    assert [word for word in sorted(first, key=first.__getitem__) if len(word) > 3 and word[0] not in "[#"] == [
        "river", "forest", "meadow", "stone",
    ]  # fmt: skip
    monkeypatch.setattr(tiny, "VOCABULARY_SIZE", len(first) - 1)
    assert first.keys() - tiny_tokenizer(texts).get_vocab().keys() == {"stone"}, "the last one finds no room"


TOKENIZERS = {
    "word pieces": builders.tokenizer,
    "T5": lambda: unigram(transformers.T5Tokenizer, "<pad>", "</s>", "<unk>"),
    "XLM-R": lambda: unigram(transformers.XLMRobertaTokenizer, "<s>", "<pad>", "</s>", "<unk>"),
    "DeBERTa": lambda: unigram(transformers.DebertaV2Tokenizer, "[PAD]", "[CLS]", "[SEP]", "[UNK]"),
    "XLNet": lambda: unigram(transformers.XLNetTokenizer, "<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_special_tokens_in_a_text_are_text_in_program_and_export(tmp_path: Path, kind: str) -> None:
    plain = TOKENIZERS[kind]()
    plain.save_pretrained(tmp_path / "base")
    tokenizer = load_text_tokenizer(str(tmp_path / "base"))
    tokenizer.save_pretrained(tmp_path / "export")
    export = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    again = load_text_tokenizer(str(tmp_path / "export"))
    added = sorted(tokenizer("")["input_ids"])
    text = "river </s> stone <s> [SEP] <sep> stone [CLS] <cls> river"
    ids = tokenizer(text)["input_ids"]
    found = sorted(number for number in ids if number in tokenizer.all_special_ids and number != tokenizer.unk_token_id)
    assert found == added, tokenizer.convert_ids_to_tokens(ids)
    assert export(text)["input_ids"] == again(text)["input_ids"] == ids
    others = "river stone stones ë river"
    assert tokenizer(others)["input_ids"] == plain(others)["input_ids"], "other texts keep their tokens"


def test_a_special_token_whose_characters_the_vocabulary_lacks_is_refused_in_a_text(tmp_path: Path) -> None:
    """T5's own vocabulary has no "<"."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁river", -3.0), ("s", -4.0)]
    transformers.T5Tokenizer(vocab=pieces).save_pretrained(tmp_path / "base")
    tokenizer = load_text_tokenizer(str(tmp_path / "base"))
    with pytest.raises(UserError, match="text 2, 'river </s> river': the model's tokenizer takes </s> in it"):
        token_store.write(tmp_path / "a", tokenizer, ["river", "river </s> river"], np.zeros(2, np.int64), 16)
    token_store.write(tmp_path / "b", tokenizer, ["river", "river < river"], np.zeros(2, np.int64), 16)


@pytest.mark.parametrize(("words", "usable"), [(0, False), (1, False), (2, True), (30, True)])
def test_a_vocabulary_of_special_tokens_alone_is_none(words: int, usable: bool) -> None:
    """The library makes one up if the tokenizer's files are missing; with a single piece beside them, no text differs."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{number}" for number in range(words))]
    model = tokenizers.models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    if usable:
        assert with_padding_token("m", tokenizer).pad_token_id == 0
        return
    with pytest.raises(UserError, match="model=m: its tokenizer has no vocabulary; save the tokenizer's files"):
        with_padding_token("m", tokenizer)


def test_the_tiny_models_tokenizer_reads_special_tokens_as_text() -> None:
    tokens = tiny_tokenizer(["[SEP] river"])("river [SEP] [PAD]").tokens()
    assert (tokens.count("[SEP]"), tokens.count("[PAD]")) == (1, 0)


def test_a_package_that_a_tokenizer_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(*_: object, **__: object) -> None:
        raise ImportError("`tiktoken` is required to read a `tiktoken` file.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", needs)
    with pytest.raises(UserError, match=r"its tokenizer needs the package tiktoken: \./run-local\.sh -m pip install"):
        loading.load_tokenizer(str(builders.pretrained(tmp_path)), [], 16)


@pytest.mark.parametrize(
    ("roles", "pad"),
    [({"eos_token": "[END]"}, "[END]"), ({"eos_token": "[END]", "pad_token": "[PAD]"}, "[PAD]"), ({}, None)],
)
def test_a_tokenizer_without_padding_token_pads_with_the_end_of_a_text(roles: dict[str, str], pad: str | None) -> None:
    words = {word: number for number, word in enumerate(("[UNK]", "[PAD]", "[END]", "river", "stone"))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **roles)
    if pad is None:
        with pytest.raises(
            UserError, match="model=m: its tokenizer has neither a padding nor an end-of-sequence token"
        ):
            with_padding_token("m", tokenizer)
        return
    found = with_padding_token("m", tokenizer)
    assert (found.pad_token, found.pad_token_id) == (pad, words[pad])
