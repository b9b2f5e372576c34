import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl import sharding
from scaling_fl.errors import UserError

labels_and_sites = st.lists(st.integers(0, 4), min_size=1, max_size=80).flatmap(
    lambda labels: st.tuples(st.just(np.array(labels)), st.integers(1, len(labels)))
)


@given(labels_and_sites, st.booleans(), st.integers(0, 2**32))
def test_shards_partition_the_examples_evenly(labels_and_sites: tuple[np.ndarray, int], iid: bool, seed: int) -> None:
    labels, num_sites = labels_and_sites
    shards = sharding.shard(labels, num_sites, iid, seed)
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    if not iid:
        of_sites = [labels[shard] for shard in shards]
        assert all(a.max() <= b.min() for a, b in itertools.pairwise(of_sites)), "sorted by label, then cut"


def test_iid_shards_are_shuffled_by_the_seed() -> None:
    labels = np.arange(100) // 25
    first, again, other = (sharding.shard(labels, 4, True, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    assert all(len(np.unique(labels[shard])) == 4 for shard in first), "every site sees every label"


def test_fewer_examples_than_sites_are_refused() -> None:
    with pytest.raises(UserError, match="2 training examples are too few for 3 sites"):
        sharding.shard(np.array([0, 1]), 3, True, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 9))
def test_a_stratified_selection_keeps_the_proportions(labels: list[int], keep: int, seed: int) -> None:
    array = np.array(labels)
    chosen = sharding.stratified(array, keep, seed)
    assert len(chosen) == min(keep, len(array))
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    for label in set(labels):
        share = (array == label).sum() * min(keep, len(array)) / len(array)
        assert abs((array[chosen] == label).sum() - share) < 1


def test_a_stratified_selection_depends_on_the_seed() -> None:
    labels = np.zeros(50, np.int64)
    assert np.array_equal(sharding.stratified(labels, 10, 1), sharding.stratified(labels, 10, 1))
    assert not np.array_equal(sharding.stratified(labels, 10, 1), sharding.stratified(labels, 10, 2))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_the_share_held_back_keeps_the_proportions(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        with pytest.raises(
            UserError, match=r"validation_fraction=.*: of \d+ training examples that is (none|each one);"
        ):
            sharding.held_back(array, fraction, seed)
        return
    chosen = sharding.held_back(array, fraction, seed)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    for label in set(labels):
        assert abs((array[chosen] == label).sum() - (array == label).mean() * count) < 1
    assert np.array_equal(chosen, sharding.held_back(array, fraction, seed))


def test_nothing_is_held_back_unless_asked_for_and_the_seed_says_what() -> None:
    labels = np.arange(50) % 2
    assert sharding.held_back(labels, 0.0, 1).tolist() == []
    assert not np.array_equal(sharding.held_back(labels, 0.2, 1), sharding.held_back(labels, 0.2, 2))
    # Else, rows that `max_train_examples` keeps would be those that are held back.
    assert not np.array_equal(sharding.held_back(labels, 0.2, 1), sharding.stratified(labels, 10, 1))
