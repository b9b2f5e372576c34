"""Declaration of a configuration key: default, help, valid values, and whether a resume may change it."""

import dataclasses
from collections.abc import Callable
from typing import Any


def key(
    default: Any,
    help: str,
    expected: str = "",
    valid: Callable[[Any], bool] | None = None,
    may_change: bool = False,
    may_be_empty: bool = False,
) -> Any:
    """A configuration key.

    `expected`: the values that `valid` accepts; `may_change`: whether a resumed job may change it; `may_be_empty`: an
    empty text, as an unset shell variable leaves it, counts as not set, instead of being refused.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": help, "expected": expected, "valid": valid, "may_change": may_change, "may_be_empty": may_be_empty,
        },
    )  # fmt: skip


def at_least(minimum: int) -> dict[str, Any]:
    return {"expected": f"a whole number, {minimum} or more", "valid": lambda value: value >= minimum}


def one_of(values: tuple[str, ...]) -> dict[str, Any]:
    return {"expected": f"one of {', '.join(values)}", "valid": values.__contains__}


ABOVE_0: dict[str, Any] = {"expected": "a number above 0", "valid": lambda value: 0 < value < float("inf")}
NOT_NEGATIVE: dict[str, Any] = {
    "expected": "a number, 0 or more",
    "valid": lambda value: 0 <= value < float("inf"),
}
SEED: dict[str, Any] = {  # numpy's limit
    "expected": "a whole number from 0 to 4294967295",
    "valid": lambda value: 0 <= value < 2**32,
}
