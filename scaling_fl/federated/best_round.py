"""The best round so far by one metric: its checkpoint outlives the others."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BestRound:
    """It travels in each checkpoint's header, so that a resumed job compares with what the first one saw."""

    metric: str
    round: int
    value: float


def best_so_far(
    metric: str | None, before: BestRound | None, round_: int, results: Mapping[str, float | str]
) -> BestRound | None:
    """The better of the best `before` and `round_`; the earlier of equals. Losses are better lower, the rest higher.

    A round that was not evaluated, or not to a finite number (those are text), is not compared. None: no metric.
    """
    value = None if metric is None else results.get(metric)
    if metric is None or not isinstance(value, int | float):
        return before
    sign = -1 if metric.endswith("loss") else 1
    return BestRound(metric, round_, value) if before is None or sign * value > sign * before.value else before


def best_in_header(header: Mapping[str, Any], metric: str | None) -> BestRound | None:
    """The best round that a checkpoint knows of. Where it went by another metric, that is its own round."""
    best = header.get("best")
    if best is not None and best["metric"] == metric:
        return BestRound(**best)
    return best_so_far(metric, None, header["round"], header["metrics"])
