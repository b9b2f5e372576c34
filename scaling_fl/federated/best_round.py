"""The best round so far by one metric (`keep_best`): its checkpoint is never pruned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scaling_fl.data.examples import Task
from scaling_fl.errors import UserError

_LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte")


@dataclass(frozen=True)
class BestRound:
    """Stored in every checkpoint header, so that a resumed job compares with all rounds before it."""

    metric: str
    round: int
    value: float


def check(metric: str | None, task: Task) -> None:
    """Raises `UserError` if the rounds of the task have no such metric."""
    kind = str(metric).partition(".")[2]
    if (kind == "perplexity" and not task.predicts_tokens) or (
        kind == "bits_per_byte" and (task.conversations or not task.predicts_tokens)
    ):
        what = "conversations are" if task.conversations else "a classifier is"
        raise UserError(
            f"keep_best={metric}: {what} not measured by {kind}; choose another metric, such as validation.loss"
        )


def best_so_far(
    metric: str | None, before: BestRound | None, round_: int, results: Mapping[str, float | str]
) -> BestRound | None:
    """Return the better of `before` and `round_`; the earlier wins a tie. Lower is better for losses, perplexities
    and bits per byte, higher otherwise.

    A round without a finite value doesn't count: it was not evaluated, or its value was NaN or infinite, which
    is stored as text. Returns None if there is no metric, or no such round yet.
    """
    value = None if metric is None else results.get(metric)
    if metric is None or not isinstance(value, int | float):
        return before
    sign = -1 if metric.endswith(_LOWER_IS_BETTER) else 1
    return BestRound(metric, round_, value) if before is None or sign * value > sign * before.value else before


def best_in_header(header: Mapping[str, Any], metric: str | None) -> BestRound | None:
    """Return the best round that a checkpoint header records; its own round if it recorded another metric."""
    best = header.get("best")
    if best is not None and best["metric"] == metric:
        return BestRound(**best)
    return best_so_far(metric, None, header["round"], header["metrics"])
