import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from scaling_fl.data import token_store
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from tests import builders


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    texts, labels = builders.texts_and_labels(2500)  # more than one chunk for the tokenizer
    texts[3] = ""
    texts[4] = "river " * 500
    token_store.write(tmp_path / "store", builders.tokenizer(), texts, labels, max_seq_len=9)
    return TokenStore(tmp_path / "store", pad_token_id=0)


def test_the_store_holds_the_tokenizer_s_output(store: TokenStore) -> None:
    texts, labels = builders.texts_and_labels(2500)
    tokenizer = builders.tokenizer()
    assert len(store) == 2500
    assert np.array_equal(store.labels, labels)
    assert store.tokens.dtype == np.uint8, "the smallest type for a vocabulary of fewer than 256 tokens"
    for index in (0, 1, 999, 1000, 2499):
        expected = tokenizer(texts[index], truncation=True, max_length=9)["input_ids"]
        assert store.tokens[store.offsets[index] : store.offsets[index + 1]].tolist() == expected
    assert store.lengths[3] == 2, "an empty text is [CLS] [SEP]"
    assert store.lengths[4] == 9, "a long text is truncated"


def test_a_batch_is_padded_on_the_right_to_its_longest_text(store: TokenStore) -> None:
    indices = np.array([3, 7, 4])
    batch = store.batch(indices)
    assert batch.input_ids.shape == batch.attention_mask.shape == (3, 9)
    for row, index in enumerate(indices):
        length = store.lengths[index]
        own = store.tokens[store.offsets[index] : store.offsets[index + 1]]
        assert batch.input_ids[row, :length].tolist() == own.tolist()
        assert batch.input_ids[row, length:].tolist() == [0] * (9 - length)
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (9 - length)
    assert batch.labels.tolist() == store.labels[indices].tolist()
    assert store.batch(np.array([3])).input_ids.shape == (1, 2)


def test_padding_and_truncation_set_in_the_tokenizer_are_overridden(tmp_path: Path) -> None:
    tokenizer = builders.tokenizer()
    tokenizer._tokenizer.enable_padding(length=50)
    tokenizer._tokenizer.enable_truncation(3)
    token_store.write(tmp_path / "store", tokenizer, ["river stone forest meadow"], np.array([0]), max_seq_len=30)
    assert TokenStore(tmp_path / "store", 0).lengths.tolist() == [6]


@pytest.mark.parametrize("grouped", [True, False])
def test_an_epoch_has_each_example_of_the_shard_once_in_a_seeded_order(store: TokenStore, grouped: bool) -> None:
    shard = np.arange(100, 1250, 3)

    def epoch(seed: int, *path: int) -> list[np.ndarray]:
        return token_store.training_batches(store, shard, 7, grouped, seed, *path)

    batches = epoch(1, 2, 3, 4)
    assert sorted(np.concatenate(batches).tolist()) == shard.tolist()
    assert sorted(map(len, batches))[1:] == [7] * (len(shard) // 7)
    assert [b.tolist() for b in epoch(1, 2, 3, 4)] == [b.tolist() for b in batches]
    for other in ((2, 2, 3, 4), (1, 1, 3, 4), (1, 2, 2, 4), (1, 2, 3, 5)):
        assert [b.tolist() for b in epoch(*other)] != [b.tolist() for b in batches]


def test_grouping_by_length_reduces_padding_and_batches_are_shuffled(store: TokenStore) -> None:
    shard = np.arange(len(store))

    def padding(batches: list[np.ndarray]) -> int:
        return sum(int(store.lengths[b].max() * len(b) - store.lengths[b].sum()) for b in batches)

    grouped = token_store.training_batches(store, shard, 4, True, 1)
    plain = token_store.training_batches(store, shard, 4, False, 1)
    assert padding(grouped) < padding(plain) / 5
    longest = [store.lengths[b].max() for b in grouped]
    assert longest != sorted(longest), "batches are shuffled"
    assert longest != sorted(longest, reverse=True)


@given(st.integers(1, 60), st.integers(1, 20))
def test_chunks_lose_nothing(count: int, size: int) -> None:
    parts = token_store._chunks(np.arange(count), size)
    assert np.concatenate(parts).tolist() == list(range(count))
    assert all(len(part) == size for part in parts[:-1])
    assert 1 <= len(parts[-1]) <= size


PAIRS = (["river stone", "forest", ""], ["meadow", "river river river river stone stone forest", "stone"])


def test_pairs_are_joined_and_truncated_by_the_tokenizer_with_token_types_on_request(tmp_path: Path) -> None:
    tokenizer, labels = builders.tokenizer(), np.array([0, 1, 0])
    token_store.write(tmp_path / "typed", tokenizer, PAIRS[0], labels, 8, PAIRS[1], token_types=True)
    token_store.write(tmp_path / "plain", tokenizer, PAIRS[0], labels, 8, PAIRS[1])
    typed, plain = (TokenStore(tmp_path / name, pad_token_id=0) for name in ("typed", "plain"))
    expected = tokenizer(*PAIRS, truncation=True, max_length=8, padding=True, return_token_type_ids=True)
    batch = typed.batch(np.arange(3))
    assert batch.input_ids.tolist() == expected["input_ids"]
    assert batch.attention_mask.tolist() == expected["attention_mask"]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == expected["token_type_ids"]
    assert batch.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0], "[CLS] river stone [SEP] meadow [SEP], padding"
    assert typed.lengths.tolist() == [6, 8, 4]
    assert plain.batch(np.arange(3)).token_type_ids is None
    assert plain.tokens.tolist() == typed.tokens.tolist()


def test_the_batches_of_one_window_are_shuffled_and_come_in_another_order_each_epoch(store: TokenStore) -> None:
    """50 batches are one window, sorted by length. Unshuffled, the batch with the empty text would always be last."""
    shard = np.arange(token_store.WINDOW * 4)
    (empty,) = np.flatnonzero(store.lengths[shard] == 2)
    places = []
    for epoch in range(200):
        batches = token_store.training_batches(store, shard, 4, True, 1, 1, 1, epoch)
        assert len(batches) == 50
        places += [place for place, batch in enumerate(batches) if empty in batch]
    # Uniform on 0 … 49: mean 24.5, variance (50² − 1) / 12.
    assert np.mean(places) == pytest.approx(24.5, abs=5 * np.sqrt((50**2 - 1) / 12 / 200))
    assert len(set(places)) > 25


def test_examples_are_shuffled_before_they_are_grouped(store: TokenStore) -> None:
    """A shard of two windows: the examples of the first half of the file are in both."""
    shard = np.arange(token_store.WINDOW * 4 * 2)
    for grouped in (True, False):
        batches = token_store.training_batches(store, shard, 4, grouped, 1)
        mixed = [len({int(example) < len(shard) // 2 for example in batch}) == 2 for batch in batches]
        assert sum(mixed) > len(batches) / 2, "most batches have examples of both halves of the file"


def test_padding_is_the_padding_token_and_has_token_type_0(tmp_path: Path) -> None:
    token_store.write(tmp_path / "typed", builders.tokenizer(), PAIRS[0], np.array([2, 1, 0]), 8, PAIRS[1], True)
    batch = TokenStore(tmp_path / "typed", pad_token_id=5).batch(np.array([2, 1]))
    assert batch.attention_mask.tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    assert batch.input_ids[0, 4:].tolist() == [5] * 4
    assert batch.token_type_ids is not None
    assert batch.token_type_ids[0, 4:].tolist() == [0] * 4
    assert batch.labels.tolist() == [0, 1]


def test_an_empty_text_becomes_the_padding_token_if_the_tokenizer_adds_none(tmp_path: Path) -> None:
    class Words:
        """A tokenizer without special tokens: every letter is a token."""

        pad_token_id, unk_token_id = 9, None
        all_special_ids = (9,)

        def __len__(self) -> int:
            return 300

        def get_vocab(self) -> dict[str, int]:
            return {chr(number): number for number in range(300)}

        def __call__(self, texts: list[str], pairs: None, **_: object) -> dict[str, list[list[int]]]:
            ids = [[ord(letter) for letter in text] for text in texts]
            return {"input_ids": ids, "token_type_ids": [[1] * len(row) for row in ids]}

    token_store.write(tmp_path / "store", Words(), ["ab", "", "c"], np.zeros(3, np.int64), 8, token_types=True)
    store = TokenStore(tmp_path / "store", pad_token_id=9)
    assert store.tokens.dtype == np.uint16, "299 doesn't fit into 8 bits"
    assert store.tokens.tolist() == [97, 98, 9, 99]
    assert store.offsets.tolist() == [0, 2, 3, 4]
    assert store.types is not None
    assert store.types.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("paired", [False, True])
def test_a_text_in_which_the_tokenizer_finds_a_special_token_is_refused(tmp_path: Path, paired: bool) -> None:
    """Splitting at spaces, this tokenizer reads [SEP] in a text as the end of the text."""
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "river": 3}, "[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        split_special_tokens=True,
    )  # fmt: skip
    texts = ["river", "", "an unknown river", "river [SEP] river", "[CLS]"]
    pairs = ["river", "river", "river", "lake", "river"] if paired else None
    for before, number in ((0, "4"), (1500, "1,504")):  # more than one chunk for the tokenizer
        said = rf"^text {number}, 'river \[SEP\] river{' … lake' * paired}': the model's tokenizer takes \[SEP\] in it for a"
        rows, second = ["river"] * before + texts, pairs and ["river"] * before + pairs
        with pytest.raises(UserError, match=said):
            token_store.write(tmp_path / f"after {before}", words, rows, np.zeros(len(rows), np.int64), 16, second)
    token_store.write(tmp_path / "good", words, texts[:3], np.zeros(3, np.int64), 16, pairs and pairs[:3])
    assert TokenStore(tmp_path / "good", 0).lengths.tolist() == ([5, 4, 7] if paired else [3, 2, 5])


def test_evaluation_batches_are_sorted_by_length_and_ties_keep_their_order(store: TokenStore) -> None:
    examples = np.array([3, 40, 4, 11, 2499, 7])
    batches = token_store.evaluation_batches(store, examples, 4)
    order = sorted(range(6), key=lambda i: (-store.lengths[examples[i]], i))
    assert [batch.tolist() for batch in batches] == [examples[order[:4]].tolist(), examples[order[4:]].tolist()]


def test_batches_are_padded_on_the_left_or_to_a_minimum_length(tmp_path: Path) -> None:
    token_store.write(tmp_path / "store", builders.tokenizer(), ["river stone"], np.array([0]), 9)
    ids = TokenStore(tmp_path / "store", 7).batch(np.array([0]))
    length = ids.input_ids.shape[1]
    for left in (False, True):
        batch = TokenStore(tmp_path / "store", 7, left, length + 3).batch(np.array([0]))
        words = slice(3, None) if left else slice(0, length)
        assert torch.equal(batch.input_ids[:, words], ids.input_ids)
        assert torch.equal(batch.attention_mask[:, words], ids.attention_mask)
        assert (batch.input_ids == 7).sum() == 3
        assert batch.attention_mask.sum() == length


def test_vocabularies_with_gaps_keep_their_ids(tmp_path: Path) -> None:
    tokenizer = builders.tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["model"]["vocab"]["river"] = 70_000
    gapped = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    token_store.write(tmp_path / "store", gapped, ["river"], np.array([0]), 8)
    assert 70_000 in TokenStore(tmp_path / "store", 0).tokens


def test_batches_are_padded_to_a_multiple_but_never_beyond_the_longest_text(tmp_path: Path) -> None:
    """With [CLS] and [SEP], the texts have 3, 6 and 11 tokens."""
    texts = ["river", "river " * 4, "river " * 9]
    token_store.write(tmp_path / "store", builders.tokenizer(), texts, np.zeros(3, np.int64), max_seq_len=64)
    for multiple, widths in ((1, [3, 6, 11]), (4, [4, 8, 11]), (8, [8, 8, 11]), (16, [11, 11, 11])):
        store = TokenStore(tmp_path / "store", 0, multiple=multiple)
        assert [store.batch(np.array([row])).input_ids.shape[1] for row in range(3)] == widths
        batch = store.batch(np.array([0]))
        assert batch.attention_mask is not None
        assert batch.attention_mask.sum() == 3
    left = TokenStore(tmp_path / "store", 0, left=True, multiple=8).batch(np.array([1, 0]))
    assert left.attention_mask is not None
    assert left.attention_mask.tolist() == [[0] * 2 + [1] * 6, [0] * 5 + [1] * 3]
    assert TokenStore(tmp_path / "store", 0, min_length=5, multiple=4).batch(np.array([0])).input_ids.shape == (1, 8)


def test_a_batch_is_one_tensor_on_its_way_to_a_device(tmp_path: Path) -> None:
    texts, labels = builders.texts_and_labels(5)
    token_store.write(tmp_path / "pairs", builders.tokenizer(), texts, labels, 30, texts[::-1], token_types=True)
    documents = builders.write_documents(tmp_path / "documents", 4)
    for batch in (TokenStore(tmp_path / "pairs", 0).batch(np.array([3, 1, 4])), documents.batch(np.array([2, 0]))):
        for sent in (batch, batch._replace(attention_mask=None)):
            values, restored = sent.packed()
            assert (values.dtype, values.dim()) == (torch.int64, 1)
            found = restored(values.clone())
            for name, part in sent._asdict().items():
                assert (part is None) == (getattr(found, name) is None)
                assert part is None or torch.equal(getattr(found, name), part)


def test_documents_are_as_long_as_their_bytes_in_utf_8(tmp_path: Path) -> None:
    words = builders.tokenizer()
    texts = ["river", "", "é €", "stone \U0001f600"]
    token_store.write(tmp_path / "store", words, texts, np.zeros(4, np.int64), None, end_token=words.eos_token_id)
    assert TokenStore(tmp_path / "store", 0).num_bytes.tolist() == [5, 0, 2 + 1 + 3, 6 + 4]
