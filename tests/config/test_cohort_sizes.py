"""Keys of methods that need more, or fewer, sites than there are."""

from typing import Any

import pytest

from scaling_fl.config.method_constraints import check_cohort
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


@pytest.mark.parametrize(
    ("keys", "least"),
    [
        ({"aggregation": "trimmed_mean", "faulty_sites": 3}, 7),
        ({"aggregation": "krum", "faulty_sites": 3}, 9),
        ({"aggregation": "krum", "faulty_sites": 1, "krum_sites": 4}, 7),
    ],
)
def test_a_round_needs_enough_sites_to_withstand_the_faulty_ones(keys: dict[str, Any], least: int) -> None:
    """Yin et al. 2018: trimming leaves a value. Blanchard et al. 2017: n ≥ 2f + 3, and n − f − 2 sites have near ones."""
    config = Config.from_mapping({"weighting": "uniform"} | keys)
    check_cohort(config, 20, least)
    with pytest.raises(UserError, match=f"(needs {least} or more sites in a round, found|at most 3 of) {least - 1}"):
        check_cohort(config, 20, least - 1)


def test_no_more_sites_attack_than_there_are() -> None:
    config = Config.from_mapping({"attack": "scale", "attackers": 5})
    check_cohort(config, 5, 1)
    with pytest.raises(UserError, match="attackers=5: there are 4 sites; lower it"):
        check_cohort(config, 4, 4)


def test_secure_aggregation_has_a_number_of_sites() -> None:
    config = Config.from_mapping({"secure_aggregation": True, "secure_threshold": 5})
    check_cohort(config, 100, 64)
    for wrong in (4, 65):
        with pytest.raises(UserError, match=rf"secure_aggregation=True: {wrong} sites in a round; expected 5 .* to 64"):
            check_cohort(config, 100, wrong)
