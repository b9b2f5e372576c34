"""How much sites train in a round."""

from collections import Counter
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.federated import local_work
from scaling_fl.federated.local_work import LocalWork


@pytest.mark.parametrize(
    ("keys", "size", "expected", "span"),
    [
        ({"num_local_epochs": 3}, 10, LocalWork(3, 9, 30), (9, 9)),  # batches of 4, 4 and 2
        ({"num_local_epochs": 3}, 3, LocalWork(3, 3, 9), (3, 3)),
        ({"num_local_steps": 5}, 10, LocalWork(0, 5, 20), (5, 5)),
        ({"num_local_steps": 5}, 3, LocalWork(0, 5, 15), (5, 5)),
        ({"local_epochs_range": (2, 2)}, 10, LocalWork(2, 6, 20), (6, 6)),
    ],
)
def test_the_work_of_a_site_by_hand(
    keys: dict[str, Any], size: int, expected: LocalWork, span: tuple[int, int]
) -> None:
    config = Config(batch_size=4, **keys)
    assert local_work.of_site(config, size, 7, 1) == expected
    assert local_work.step_range(config, size) == span


def test_epochs_are_drawn_uniformly_from_the_range_for_each_site_and_round() -> None:
    def draws(seed: int) -> list[int]:
        config = Config(batch_size=4, local_epochs_range=(2, 5), seed=seed)
        return [local_work.of_site(config, 10, round_, site).epochs for round_ in range(1, 101) for site in range(20)]

    found = draws(1)
    counts = Counter(found)
    assert counts.keys() == {2, 3, 4, 5}
    for count in counts.values():
        assert count / 2000 == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 2000) ** 0.5)
    assert found == draws(1)
    assert found != draws(2)
    by_round = [tuple(found[start : start + 20]) for start in range(0, 2000, 20)]
    assert len(set(by_round)) > 90, "another draw in each round"
    assert len(set(zip(*by_round, strict=True))) == 20, "and at each site"
    assert local_work.step_range(Config(batch_size=4, local_epochs_range=(2, 5)), 10) == (6, 15)


def test_a_round_is_the_work_of_its_cohort() -> None:
    sizes = [3, 10, 6]
    work = LocalWork(1, 1, 3), LocalWork(1, 3, 10), LocalWork(1, 2, 6)
    assert local_work.of_round(Config(batch_size=4), sizes, 1) == list(work)
    assert local_work.of_round(Config(batch_size=4, baseline="centralised"), sizes, 1) == [LocalWork(1, 5, 19)]
    found = local_work.of_round(Config(batch_size=4, sites_per_round=2), sizes, 1)
    assert len(found) == 2
    assert set(found) < set(work)
