import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl.data import subsets
from scaling_fl.errors import UserError


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 9))
def test_a_stratified_subset_keeps_the_label_proportions(labels: list[int], keep: int, seed: int) -> None:
    array = np.array(labels)
    chosen = subsets.stratified(array, keep, seed)
    assert len(chosen) == min(keep, len(array))
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    for label in set(labels):
        share = (array == label).sum() * min(keep, len(array)) / len(array)
        assert abs((array[chosen] == label).sum() - share) < 1


def test_a_stratified_subset_depends_on_the_seed() -> None:
    labels = np.zeros(50, np.int64)
    assert np.array_equal(subsets.stratified(labels, 10, 1), subsets.stratified(labels, 10, 1))
    assert not np.array_equal(subsets.stratified(labels, 10, 1), subsets.stratified(labels, 10, 2))


@given(st.lists(st.integers(0, 3), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_the_rows_held_back_keep_the_label_proportions(labels: list[int], fraction: float, seed: int) -> None:
    array = np.array(labels)
    count = round(fraction * len(labels))
    if not 0 < count < len(labels):
        with pytest.raises(
            UserError, match=r"validation_fraction=.*: holds back (none|all) of \d+ training examples; (raise|lower) it"
        ):
            subsets.held_back(array, fraction, seed)
        return
    chosen = subsets.held_back(array, fraction, seed)
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all(), "in order, none twice"
    for label in set(labels):
        assert abs((array[chosen] == label).sum() - (array == label).mean() * count) < 1
    assert np.array_equal(chosen, subsets.held_back(array, fraction, seed))


def test_no_rows_are_held_back_by_default_and_the_seed_selects_them() -> None:
    labels = np.arange(50) % 2
    assert subsets.held_back(labels, 0.0, 1).tolist() == []
    assert not np.array_equal(subsets.held_back(labels, 0.2, 1), subsets.held_back(labels, 0.2, 2))
    # Otherwise `max_train_examples` would keep the very rows that are held back.
    assert not np.array_equal(subsets.held_back(labels, 0.2, 1), subsets.stratified(labels, 10, 1))
