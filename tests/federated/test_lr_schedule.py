import math
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.lr_schedule import learning_rate


def rates(*times: float, **keys: object) -> list[float]:
    config = Config(learning_rate=0.1, num_rounds=10, **keys)  # type: ignore[arg-type]
    return [learning_rate(config, int(time) + 1, time - int(time)) for time in times]


def test_the_rate_is_constant_by_default() -> None:
    assert rates(0, 0.5, 9.9) == [0.1, 0.1, 0.1]


def test_schedules_span_the_whole_run_and_do_not_restart_each_round() -> None:
    assert rates(0, 2.5, 5, 9.5, lr_schedule="linear") == pytest.approx([0.1, 0.075, 0.05, 0.005])
    # half a cosine: 0.1 × (1 + cos(π × time / 10)) / 2
    expected = [0.1 * (1 + math.cos(math.pi * time / 10)) / 2 for time in (0, 2.5, 5, 9.5)]
    assert rates(0, 2.5, 5, 9.5, lr_schedule="cosine") == pytest.approx(expected)
    config = Config(num_rounds=10, lr_schedule="linear")
    assert learning_rate(config, 4, 1.0) == learning_rate(config, 5, 0.0), "a round ends where the next one starts"
    assert learning_rate(config, 10, 1.0) == 0


def test_a_schedule_ends_at_the_final_rate() -> None:
    assert rates(0, 5, 10, lr_schedule="linear", final_learning_rate=0.02) == pytest.approx([0.1, 0.06, 0.02])
    expected = [0.02 + 0.08 * (1 + math.cos(math.pi * time / 10)) / 2 for time in (0, 2.5, 10)]
    assert rates(0, 2.5, 10, lr_schedule="cosine", final_learning_rate=0.02) == pytest.approx(expected)
    assert rates(2, 6, 10, lr_schedule="linear", final_learning_rate=0.02, warmup=2.0) == pytest.approx(
        [0.1, 0.06, 0.02]
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"final_learning_rate": 1e-6},
            "final_learning_rate=1e-06: lr_schedule=constant keeps the rate; set lr_schedule=cosine",
        ),
        (
            {"final_learning_rate": 0.2, "learning_rate": 0.1, "lr_schedule": "cosine"},
            "final_learning_rate=0.2: above learning_rate=0.1; lower it",
        ),
    ],
)
def test_a_final_rate_that_means_nothing_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_mapping(keys)


@pytest.mark.parametrize("warmup", [2.0, 0.2])
def test_warm_up_is_in_rounds_or_a_fraction_of_them(warmup: float) -> None:
    assert rates(0, 0.5, 1.5, 2, 9, warmup=warmup) == pytest.approx([0, 0.025, 0.075, 0.1, 0.1])
    assert rates(1, 2, 6, 10 - 1e-9, warmup=warmup, lr_schedule="linear") == pytest.approx(
        [0.05, 0.1, 0.05, 0], abs=1e-9
    )


def test_a_warm_up_of_1_is_one_round_and_not_all_of_them() -> None:
    assert rates(0.5, 1, 5, warmup=1.0) == pytest.approx([0.05, 0.1, 0.1])
    assert rates(0.5, 1, 5, warmup=0.05) == pytest.approx([0.1, 0.1, 0.1])
