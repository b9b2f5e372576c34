import math

import pytest

from scaling_fl.tracking.loss_watch import LossWatch, far_above

EVEN = {site: 1.0 + site / 100 for site in range(9)}  # median 1.04, MAD 0.02


SPREAD = {site: site / 2 for site in range(9)}  # median 2, MAD 1: the limit is 2 + 6 × 1.4826 = 10.896
GOOD = dict.fromkeys(range(9), 0.01)


@pytest.mark.parametrize(
    ("losses", "sites"),
    [
        (EVEN, []),
        (EVEN | {3: 1.5}, []),  # far above in deviations, but not by half of the median
        (EVEN | {3: 1.7}, [3]),
        (EVEN | {3: 1.7, 8: 9.0}, [3, 8]),
        (EVEN | {3: 0.0}, []),  # a low loss is no trouble
        (SPREAD, []),
        (SPREAD | {8: 10.8}, []),
        (SPREAD | {8: 11.0}, [8]),
        ({0: 0.5, 1: 0.5, 2: 9.0}, []),  # too few to tell
        ({0: 0.5, 1: 0.5, 2: 0.5, 3: 9.0}, [3]),
        ({0: 0.5, 1: 0.5, 2: 9.0, 3: math.nan}, [3]),
        ({0: math.inf}, [0]),
        (GOOD | {5: 0.6}, []),  # less than ½ ln 4 = 0.693
        (GOOD | {5: 0.7}, [5]),
    ],
)
def test_a_loss_is_far_above_if_deviations_median_and_guessing_say_so(
    losses: dict[int, float], sites: list[int]
) -> None:
    assert far_above(losses, 4) == sites


def test_a_site_that_stays_away_is_noted_once_until_it_has_come_back() -> None:
    watch, away = LossWatch(4), EVEN | {3: 1.75}  # 1.03 is no longer among them: their median is 1.05
    assert watch.note(1, EVEN) is None
    assert watch.note(2, away) == (
        "note: round 2: the training loss 1.7500 of site 3 is far above the sites' median 1.0500; check the texts and "
        "labels there"
    )
    assert watch.note(3, away) is None
    without = {site: loss for site, loss in EVEN.items() if site != 3}
    assert watch.note(4, without) is None, "it isn't in the cohort"
    assert watch.note(5, away) is None
    assert watch.note(6, EVEN) is None
    assert watch.note(7, away) is not None, "it had come back"


def test_sites_that_leave_in_the_same_round_share_one_line() -> None:
    note = LossWatch(4).note(5, EVEN | {2: 3.0, 3: 4.0, 7: 1.75})
    assert note is not None
    assert note.startswith("note: round 5: the training loss 4.0000 of site 3 and 2 more is far above")
    note = LossWatch(4).note(5, EVEN | {2: 3.0, 3: math.nan})
    assert note == "note: round 5: the training loss of site 3 and 1 more isn't finite; lower learning_rate"
