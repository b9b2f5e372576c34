"""Each site's own test rows: part of its shard, or its share of the test set."""

from typing import Any

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data import site_tests
from scaling_fl.data.examples import Split
from scaling_fl.data.shards import make_shards
from scaling_fl.errors import UserError
from tests import builders

TEXTS, LABELS = builders.texts_and_labels(400)
TEST_LABELS = builders.texts_and_labels(150, seed=1)[1]
SPLIT = Split(TEXTS, LABELS)


def made(**keys: Any) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], list[str]]:
    """The shards before, what is left of them, the sites' test rows, and notes."""
    config, notes = Config.from_mapping({"num_sites": 7} | keys), list[str]()
    shards = make_shards(config, SPLIT, []).shards
    return shards, *site_tests.make(config, shards, LABELS, TEST_LABELS, notes), notes


@pytest.mark.parametrize("partition", [{}, {"partition": "by_label"}, {"partition": "dirichlet", "alpha": 0.2}])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.95])
def test_held_back_rows_are_a_stratified_part_of_each_shard(partition: dict[str, Any], fraction: float) -> None:
    before, shards, tests, notes = made(site_test="held_back", site_test_fraction=fraction, **partition)
    for whole, trained, test in zip(before, shards, tests, strict=True):
        assert sorted([*trained, *test]) == whole.tolist()
        assert len(test) == min(len(whole) - 1, max(1, round(fraction * len(whole))))
        assert len(trained) >= 1
        for label in range(3):
            expected = (LABELS[whole] == label).sum() * len(test) / len(whole)
            assert abs((LABELS[test] == label).sum() - expected) < 1
    sizes = [len(test) for test in tests]
    assert notes == [f"site_test=held_back: each site is tested on {min(sizes)} to {max(sizes)} rows of its own"]
    again = made(site_test="held_back", site_test_fraction=fraction, **partition)[2]
    assert all(map(np.array_equal, tests, again))


def test_the_rows_depend_on_the_data_seed_alone() -> None:
    one, other, third = (made(site_test="held_back", **keys)[2] for keys in ({}, {"data_seed": 3}, {"seed": 3}))
    assert not all(map(np.array_equal, one, other))
    assert all(map(np.array_equal, one, third))


def test_sites_with_equal_shards_are_tested_on_different_places() -> None:
    """Each site draws for itself: rows that repeat with the number of sites would stand out otherwise."""
    labels = np.tile([0, 1], 60)
    shards = [np.arange(start, start + 20) for start in range(0, 120, 20)]
    tests = site_tests.hold_back(shards, labels, 0.3, 1)
    assert len({tuple(test - shard[0]) for test, shard in zip(tests, shards, strict=True)}) > 3
    assert not all(map(np.array_equal, tests, site_tests.hold_back(shards, labels, 0.3, 2)))


def test_labels_of_one_number_of_rows_are_divided_by_draws_of_their_own() -> None:
    test_labels = np.repeat([0, 1], 40)
    tests = site_tests.divide([np.arange(0, 120, 2), np.arange(1, 120, 2)], np.repeat([0, 1], 60), test_labels, 1)
    first, second = (tests[0][test_labels[tests[0]] == label] - 40 * label for label in (0, 1))
    assert len(first) == len(second) == 20
    assert set(first) != set(second)


def test_a_site_keeps_its_last_row_for_training() -> None:
    shards = [np.array([4]), np.array([7, 9]), np.arange(20, 30)]
    tests = site_tests.hold_back(shards, LABELS, 0.01, 1)
    assert [len(test) for test in tests] == [0, 1, 1]
    with pytest.raises(UserError, match=r"site_test=held_back: every site has one row, .* fewer sites"):
        site_tests.hold_back([np.array([4]), np.array([7])], LABELS, 0.5, 1)


@pytest.mark.parametrize(
    "partition",
    [{}, {"partition": "by_label"}, {"partition": "dirichlet", "alpha": 0.2}, {"partition": "sizes", "size_skew": 1.5}],
)
def test_the_test_set_is_divided_like_the_training_set(partition: dict[str, Any]) -> None:
    before, shards, tests, _ = made(site_test="partitioned", **partition)
    assert all(map(np.array_equal, before, shards)), "training rows stay"
    assert sorted(np.concatenate(tests)) == list(range(150)), "each test row is at one site"
    for shard, test in zip(shards, tests, strict=True):
        for label in range(3):
            there = (label == LABELS).sum()
            expected = (label == TEST_LABELS).sum() * (LABELS[shard] == label).sum() / there
            assert abs((TEST_LABELS[test] == label).sum() - expected) <= 1
    assert any(np.diff(test).max() > 1 for test in tests if len(test) > 1), "shuffled"


def test_labels_that_no_site_trains_on_go_by_size() -> None:
    tests = site_tests.divide([np.arange(30), np.arange(30, 120)], np.zeros(120, int), np.full(40, 2), 1)
    assert [len(test) for test in tests] == [10, 30]


def test_small_sites_without_test_rows_are_counted() -> None:
    _, _, tests, notes = made(site_test="partitioned", num_sites=200)
    sizes = [len(test) for test in tests]
    assert notes == [
        f"site_test=partitioned: each site is tested on 0 to {max(sizes)} rows of its own; "
        f"{sum(size == 0 for size in sizes)} sites have none"
    ]


def test_a_column_cannot_divide_the_test_set() -> None:
    config = Config(partition="column", partition_column="topic", site_test="partitioned")
    with pytest.raises(UserError, match="can't be divided by partition_column; set site_test=held_back"):
        site_tests.make(config, [np.arange(3)], LABELS, TEST_LABELS, [])


def test_without_the_key_nothing_changes() -> None:
    before, shards, tests, notes = made()
    assert shards is not None
    assert all(map(np.array_equal, before, shards))
    assert (tests, notes) == ([], [])
