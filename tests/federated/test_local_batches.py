"""The batches of a site's local training: epochs, or a stream of steps over all rounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.federated import local_work
from scaling_fl.federated.local_batches import local_batches
from tests import builders

SHARD = np.arange(3, 40)  # 37 examples: five batches of 7, and 2 left over


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> token_store.TokenStore:
    folder: Path = tmp_path_factory.mktemp("tokens") / "store"
    token_store.write(folder, builders.tokenizer(), *builders.texts_and_labels(40), max_seq_len=16)
    return token_store.TokenStore(folder, 0)


def stream(
    store: token_store.TokenStore, rounds: int, shard: np.ndarray = SHARD, site: int = 2, **keys: Any
) -> list[list[int]]:
    """The batches of all rounds, one after another."""
    config = Config(**{"batch_size": 7, "seed": 5} | keys)
    found = [
        [batch.tolist() for batch in local_batches(config, store, shard, round_, site)]
        for round_ in range(1, rounds + 1)
    ]
    for round_, of_round in enumerate(found, 1):
        work = local_work.of_site(config, len(shard), round_, site)
        assert (work.steps, work.examples) == (len(of_round), sum(map(len, of_round)))
    return [batch for of_round in found for batch in of_round]


def test_epochs_begin_anew_in_each_round(store: token_store.TokenStore) -> None:
    found = stream(store, 2, num_local_epochs=2)
    assert len(found) == 2 * 2 * 6
    for start in range(0, 24, 6):
        assert sorted(np.concatenate(found[start : start + 6])) == SHARD.tolist()


@pytest.mark.parametrize("grouped", [True, False])
def test_steps_continue_where_the_round_before_ended(store: token_store.TokenStore, grouped: bool) -> None:
    found = stream(store, 6, num_local_steps=4, group_by_length=grouped)
    assert found == stream(store, 2, num_local_steps=12, group_by_length=grouped)
    assert found != stream(store, 6, num_local_steps=4, group_by_length=not grouped)
    assert {len(batch) for batch in found} == {7}
    left_over = []
    for start in range(0, 20, 5):  # epochs
        seen = np.concatenate(found[start : start + 5])
        assert len(set(seen)) == 35
        left_over.append(set(SHARD) - set(seen))
    assert len(set(map(frozenset, left_over))) > 1, "another order in each epoch"


def test_the_stream_is_a_function_of_seed_and_site(store: token_store.TokenStore) -> None:
    found = stream(store, 2, num_local_steps=3)
    assert found == stream(store, 2, num_local_steps=3)
    assert found != stream(store, 2, num_local_steps=3, seed=6)
    assert found != stream(store, 2, num_local_steps=3, site=1)


def test_a_small_site_takes_whole_shards_as_batches(store: token_store.TokenStore) -> None:
    found = stream(store, 3, shard=SHARD[:4], num_local_steps=2)
    assert [sorted(batch) for batch in found] == [SHARD[:4].tolist()] * 6
