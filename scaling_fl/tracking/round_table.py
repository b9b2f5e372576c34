"""The table of rounds: a row for each, in columns that fit the terminal."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scaling_fl.federated.run_plan import Plan

_LARGE = 1e5  # from here on, numbers have an exponent
_FAR_ABOVE = 3.0  # times the loss of guessing; overfitted models seldom reach it
_GAP = 2  # blanks between groups of columns; one between columns
_ACCURACY = "validation.accuracy"
_EPSILON = "epsilon"  # by the tighter bound that there is
_CHANGE = "change"  # of the test accuracy, against the best round before


@dataclass(frozen=True)
class _Column:
    group: str
    heading: str
    metric: str
    width: int
    decimals: int
    drop: int = 0  # columns are left out in this order if the terminal is narrow; 0: never


class RoundTable:
    """Heading and rows for one plan. With all columns of a plain job, they are 85 characters wide."""

    def __init__(self, plan: Plan, width: int):
        """`width` in characters: columns are left out until the rows fit, except losses and accuracies."""
        self._first = max(5, len(str(plan.config.num_rounds)))
        # By round. A round that is run again, after a restart, is compared with the rounds before it alone.
        self._accuracies: dict[int, float] = {}
        for earlier, results in plan.history.items():
            self._keep(int(earlier), results)
        if plan.best is not None and plan.best.metric == _ACCURACY:  # may be older than the history
            self._accuracies[plan.best.round] = plan.best.value
        self._columns = _columns(plan)
        self.fit(width)

    def fit(self, width: int) -> bool:
        """Leave out columns until the rows fit; return whether any was left out."""
        before = len(self._columns)
        while len(self.head()[1]) > width and (droppable := [column for column in self._columns if column.drop]):
            column = min(droppable, key=lambda column: column.drop)
            self._columns.remove(column)
            self._make_room(column.group)
        return len(self._columns) < before

    def _make_room(self, group: str) -> None:
        """Widen the group's last column if the others no longer make room for its name."""
        members = [column for column in self._columns if column.group == group]
        room = sum(column.width + 1 for column in members) - 1
        if members and room < len(group):
            last = self._columns.index(members[-1])
            self._columns[last] = replace(members[-1], width=members[-1].width + len(group) - room)

    def head(self) -> list[str]:
        """The groups, and below them the headings of the columns."""
        groups = dict.fromkeys(column.group for column in self._columns)
        over = [
            f"{group:>{sum(column.width + 1 for column in self._columns if column.group == group) - 1}}"
            for group in groups
        ]
        return [
            (" " * _GAP).join([" " * self._first, *over]),
            self._joined("round", [column.heading for column in self._columns]),
        ]

    def row(self, round_: int, results: Mapping[str, Any]) -> str:
        """One round; blank where it has no value."""
        self._keep(round_, results)
        epsilon = results.get("dp.epsilon_pld", results.get("dp.epsilon_rdp"))
        results = {**results, _CHANGE: self._change(round_), _EPSILON: epsilon}
        values = [results.get(column.metric) for column in self._columns]
        return self._joined(
            str(round_),
            [
                "" if value is None else number(value, column.width, column.decimals)
                for column, value in zip(self._columns, values, strict=True)
            ],
        )

    def _keep(self, round_: int, results: Mapping[str, Any]) -> None:
        accuracy = results.get(_ACCURACY)
        if isinstance(accuracy, int | float):
            self._accuracies[round_] = accuracy
        else:  # not evaluated, or not finite
            self._accuracies.pop(round_, None)

    def _change(self, round_: int) -> str | None:
        """The accuracy minus the best one before: with a plus, it is the best so far."""
        before = [accuracy for earlier, accuracy in self._accuracies.items() if earlier < round_]
        if not before or round_ not in self._accuracies:
            return None
        change = self._accuracies[round_] - max(before)
        return f"{change:+.3f}" if change else "0.000"

    def _joined(self, first: str, cells: list[str]) -> str:
        text, group = f"{first:>{self._first}}", None
        for column, cell in zip(self._columns, cells, strict=True):
            text += " " * (1 if column.group == group else _GAP) + f"{cell:>{column.width}}"
            group = column.group
        return text


def number(value: float | str, width: int, decimals: int) -> str:
    """`value` in at most `width` (≥ 4) characters: with fewer decimals if need be, and with an exponent if it is large."""
    if isinstance(value, str) or not math.isfinite(value):  # JSON has no such numbers: there, they are text
        return str(value)[:width]
    plain = [f"{value:.{places}f}" for places in range(decimals, -1, -1)]
    powers = [f"{mantissa}e{int(power)}" for mantissa, power in (f"{value:.{n}e}".split("e") for n in (3, 2, 1, 0))]
    return next(text for text in (*(plain if abs(value) < _LARGE else ()), *powers, "…") if len(text) <= width)


def divergence_note(plan: Plan, round_: int, results: Mapping[str, Any]) -> str | None:
    """A note if a loss is far above ln(classes), the loss of a model that gives each class the same probability."""
    guessing = math.log(max(2, plan.num_outputs))
    for name, metric in (("training loss", "train.loss"), ("test loss", "validation.loss")):
        loss = results.get(metric)
        if round_ > 0 and isinstance(loss, int | float) and loss > _FAR_ABOVE * guessing:
            clipping = "lower max_grad_norm" if plan.config.max_grad_norm else "set max_grad_norm=1.0"
            return (
                f"note: round {round_}: the {name} {number(loss, 9, 4)} is far above {guessing:.4f}, that of guessing "
                f"among {plan.num_outputs:,} {'classes' if plan.label_names else 'tokens'}; if it stays there, lower "
                f"learning_rate={plan.config.learning_rate:g} or server_learning_rate, or {clipping}"
            )
    return None


def _columns(plan: Plan) -> list[_Column]:
    train = "train" if plan.config.baseline == "centralised" else "train: sites"
    test = "test: global" if plan.config.has_global_model else "test: sites"
    return [
        _Column(train, "loss", "train.loss", 6, 4),
        _Column(train, "acc", "train.accuracy", 5, 3),
        _Column(train, "worst", "train.worst_site.accuracy", 5, 3, drop=4),
        _Column(train, "best", "train.best_site.accuracy", 5, 3, drop=2),
        _Column(test, "loss", "validation.loss", 6, 4),
        _Column(test, "acc", _ACCURACY, 5, 3),
        _Column(test, "±best", _CHANGE, 6, 3, drop=6),
        _Column(test, "F1", "validation.macro_f1", 5, 3, drop=5)
        if plan.label_names
        else _Column(test, "perpl", "validation.perplexity", 7, 2, drop=5),
        *([_Column(test, "choice", "validation.choice_accuracy", 6, 3)] if plan.config.choices_column else []),
        *(
            [_Column("held back", "loss", "held_back.loss", 6, 4), _Column("held back", "acc", "held_back.accuracy", 5, 3)]
            if plan.num_held_back
            else []
        ),
        *(_Column(group, *column) for group, name in _own_tests(plan) for column in (
            ("mean", f"{name}.mean_site.accuracy", 5, 3, 10), ("worst", f"{name}.worst_site.accuracy", 5, 3, 9),
        )),
        *([_Column("privacy", "ε", _EPSILON, 7, 3)] if plan.config.dp_clip is not None else []),
        _Column("examples", "per s", "examples_per_second", 8, 1, drop=8)
        if plan.label_names
        else _Column("tokens", "per s", "tokens_per_second", 8, 1, drop=8),
        _Column("seconds", "train", "seconds.train", 5, 1, drop=7),
        _Column("seconds", "aggr", "seconds.aggregate", 4, 2, drop=1),
        _Column("seconds", "eval", "seconds.evaluate", 4, 1, drop=3),
    ]  # fmt: skip


def _own_tests(plan: Plan) -> list[tuple[str, str]]:
    """The groups of columns on sites' own test rows, with the metrics that they show."""
    if not plan.site_test_sizes:
        return []
    config = plan.config
    return [
        *([("own: global", "site_test")] if config.has_global_model else []),
        *([("own: sites", "personal")] if config.has_own_models else []),
    ]
