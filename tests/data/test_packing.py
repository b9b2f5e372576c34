"""Blocks of documents: nothing lost, nothing repeated, no site's text in another's."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer

from scaling_fl import seeding
from scaling_fl.data.packing import pack
from scaling_fl.data.token_store import TokenStore, write
from scaling_fl.errors import UserError
from tests import builders

GROUPS = [np.array([3, 0, 7]), np.array([], np.int64), np.array([1, 2, 4, 5, 6]), np.array([8])]


def document(store: TokenStore, number: int) -> list[int]:
    return list(store.tokens[store.offsets[number] : store.offsets[number + 1]])


@pytest.mark.parametrize("length", [2, 5, 16, 1000])
def test_blocks_are_the_documents_of_a_group_one_after_another(tmp_path: Path, length: int) -> None:
    documents = builders.write_documents(tmp_path / "documents", 9)
    end = builders.tokenizer().eos_token_id
    assert all(document(documents, number)[-1] == end for number in range(9))
    assert all(document(documents, number).count(end) == 1 for number in range(9))
    rows = pack(documents, GROUPS, length, 4, tmp_path / "blocks", "train")
    blocks = TokenStore(tmp_path / "blocks", 0)
    assert np.concatenate(rows).tolist() == list(range(len(blocks)))
    for number, (group, of_group) in enumerate(zip(GROUPS, rows, strict=True)):
        order = seeding.generator(4, "pack train", number).permutation(group)
        expected = [token for one in order for token in document(documents, one)]
        assert [token for row in of_group for token in document(blocks, row)] == expected
        sizes = blocks.lengths[of_group]
        assert len(sizes) == -(-len(expected) // length)
        assert all(sizes[:-2] == length)
        assert all(sizes >= 2)
        assert blocks.num_predictions[of_group].tolist() == (sizes - 1).tolist()
        texts = builders.texts_and_labels(9, 5)[0]
        assert blocks.num_bytes[of_group].sum() == sum(len(texts[one].encode()) for one in group)
    assert not set(blocks.lengths) - {length, length - 1} or length > 2


def test_a_last_block_of_one_token_takes_another_from_the_block_before(tmp_path: Path) -> None:
    tokenizer = builders.tokenizer()
    write(
        tmp_path / "documents", tokenizer, ["river stone forest"], np.array([0]), None, end_token=tokenizer.eos_token_id
    )
    documents = TokenStore(tmp_path / "documents", 0)
    assert documents.lengths.tolist() == [5], "[CLS], three words and [SEP], which ends a text already"
    pack(documents, [np.array([0])], 4, 1, tmp_path / "blocks", "train")
    assert TokenStore(tmp_path / "blocks", 0).lengths.tolist() == [3, 2]


def test_batches_predict_each_token_but_the_first_of_a_block_from_the_one_before(tmp_path: Path) -> None:
    documents = builders.write_documents(tmp_path / "documents", 9)
    (rows,) = pack(documents, [np.arange(9)], 7, 1, tmp_path / "blocks", "train")
    blocks = TokenStore(tmp_path / "blocks", 0)
    chosen = rows[[-1, 0, 3]]  # the last is shorter
    batch = blocks.batch(chosen)
    assert batch.positions is not None
    expected = [
        (row * batch.input_ids.shape[1] + place - 1, token)
        for row, block in enumerate(chosen)
        for place, token in enumerate(document(blocks, block))
        if place
    ]
    assert list(zip(batch.positions.tolist(), batch.labels.tolist(), strict=True)) == expected
    assert len(expected) == blocks.num_predictions[chosen].sum() < batch.input_ids.numel() - 3


def test_other_seeds_and_other_sets_have_another_order(tmp_path: Path) -> None:
    documents, found = builders.write_documents(tmp_path / "documents", 9), []
    for number, (seed, name) in enumerate([(1, "train"), (1, "train"), (2, "train"), (1, "test")]):
        pack(documents, [np.arange(9)], 8, seed, tmp_path / str(number), name)
        found.append((tmp_path / str(number) / "tokens.bin").read_bytes())
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_what_has_nothing_to_predict_is_refused(tmp_path: Path) -> None:
    tokenizer = builders.tokenizer()
    tokenizer.backend_tokenizer.post_processor = None  # as of models that add no special tokens
    write(tmp_path / "documents", tokenizer, [""], np.array([0]), None, end_token=tokenizer.eos_token_id)
    documents = TokenStore(tmp_path / "documents", 0)
    assert documents.lengths.tolist() == [1]
    with pytest.raises(UserError, match="a site's only document is empty"):
        pack(documents, [np.array([0])], 8, 1, tmp_path / "blocks", "train")
    with pytest.raises(UserError, match="max_seq_len=1: a block of one token"):
        pack(documents, [np.array([0])], 1, 1, tmp_path / "others", "train")


def test_blocks_hold_numbers_as_large_as_the_documents_do(tmp_path: Path) -> None:
    state = json.loads(builders.tokenizer().backend_tokenizer.to_str())
    state["model"]["vocab"]["river"] = 70_000
    words = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    write(tmp_path / "documents", words, ["stone river", "river"], np.zeros(2, np.int64), None)
    documents = TokenStore(tmp_path / "documents", 0)
    pack(documents, [np.arange(2)], 16, 1, tmp_path / "blocks", "train")
    assert sorted(TokenStore(tmp_path / "blocks", 0).tokens) == sorted(documents.tokens)
    assert list(documents.tokens).count(70_000) == 2
