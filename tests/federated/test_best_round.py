import contextlib
from typing import Any

import pytest

from scaling_fl.data.examples import NO_EXAMPLES, Task
from scaling_fl.errors import UserError
from scaling_fl.federated.best_round import BestRound, best_in_header, best_so_far, check


@pytest.mark.parametrize(
    ("metric", "values", "bests"),
    [
        ("validation.accuracy", [0.5, 0.4, 0.5, 0.7, 0.6], [1, 1, 1, 4, 4]),
        ("held_back.macro_f1", [0.0, 0.1, None, 0.1, 0.2], [1, 2, 2, 2, 5]),
        ("held_back.loss", [0.5, 0.4, 0.6, "nan", 0.4], [1, 2, 2, 2, 2]),
        ("validation.loss", ["nan", None, -0.1, -0.2, "-inf"], [None, None, 3, 4, 4]),
        ("validation.perplexity", [9.0, 8.0, 8.5, 8.0, 7.0], [1, 2, 2, 2, 5]),
        ("held_back.bits_per_byte", [1.0, 1.1, 0.9, 1.2, 0.9], [1, 1, 3, 3, 3]),
        ("validation.choice_accuracy_per_token", [0.1, 0.3, 0.2, 0.3, 0.4], [1, 2, 2, 2, 5]),
        (None, [0.5, 0.4, 0.3, 0.2, 0.1], [None] * 5),
    ],
)
def test_the_best_round_so_far(metric: str | None, values: list[Any], bests: list[int | None]) -> None:
    best: BestRound | None = None
    for round_, (value, expected) in enumerate(zip(values, bests, strict=True), start=1):
        results = {"train.loss": 0.0} | ({} if value is None else {str(metric): value})
        best = best_so_far(metric, best, round_, results)
        assert (best and best.round) == expected
        if best is not None:
            assert best == BestRound(str(metric), best.round, values[best.round - 1])


@pytest.mark.parametrize(
    ("metric", "tokens", "conversations", "missing"),
    [
        ("validation.perplexity", False, False, "a classifier is not measured by perplexity"),
        ("held_back.bits_per_byte", False, False, "a classifier is not measured by bits_per_byte"),
        ("validation.bits_per_byte", True, True, "conversations are not measured by bits_per_byte"),
        ("validation.bits_per_byte", True, False, None),
        ("validation.perplexity", True, True, None),
        ("validation.macro_f1", False, False, None),
        (None, False, False, None),
    ],
)
def test_a_metric_that_a_task_lacks_is_refused(
    metric: str | None, tokens: bool, conversations: bool, missing: str | None
) -> None:
    task = Task(NO_EXAMPLES, NO_EXAMPLES, (), predicts_tokens=tokens, conversations=conversations)
    with pytest.raises(UserError, match=f"keep_best={metric}: {missing}") if missing else contextlib.nullcontext():
        check(metric, task)


def test_the_best_round_comes_from_the_header_or_is_the_checkpoints_own() -> None:
    header = {
        "round": 4,
        "best": {"metric": "validation.loss", "round": 2, "value": 0.25},
        "metrics": {"validation.loss": 0.5, "validation.accuracy": 0.75},
    }
    assert best_in_header(header, "validation.loss") == BestRound("validation.loss", 2, 0.25)
    assert best_in_header(header, "validation.accuracy") == BestRound("validation.accuracy", 4, 0.75)
    assert best_in_header(header, "validation.macro_f1") is None
    assert best_in_header(header, None) is None
    assert best_in_header({"round": 4, "metrics": header["metrics"]}, "validation.loss") == BestRound(
        "validation.loss", 4, 0.5
    )
