"""A sweep as parallel coordinates: an axis for each key, and one for the final result."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np
import pandas as pd

from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import groups, style
from scaling_fl.reporting.frames import Frames

TITLE = "Keys and final {measure}"
CAPTION = "A line is the jobs that differ only in their seeds. The axis on the right is their mean result, which also colours the line; lines with the same value of a key lie side by side. Point at a line to see it alone."
SEVERAL = True  # jobs in one picture
_MAX_KEYS = 7  # those with the most values
_MAX_TICKS = 8  # values that all have a tick
_MIN_WIDTH, _MIN_GAP, _HEIGHT = 264, 76, 220  # pixels: of all axes, between two, of an axis
_MAX_OPAQUE = 40  # lines
_MAX_SPREAD = 0.05  # of an axis
_LINE = 11  # characters of a line of an axis title


class _Axis(NamedTuple):
    title: str
    values: Sequence[Any]  # distinct, in order
    is_numeric: bool
    is_key: bool = True

    def place(self, value: Any) -> float:
        """Where a value is on the axis: from 0, the bottom, to 1."""
        if not self.is_numeric:
            return self.values.index(value) / max(1, len(self.values) - 1)
        measure = math.log if groups.is_log(self.values) else float
        low, high, here = (measure(number) for number in (self.values[0], self.values[-1], value))
        return (here - low) / (high - low) if high > low else 0.5

    @property
    def are_few(self) -> bool:
        """Whether each value of a key has a tick. Words always have one."""
        return not self.is_numeric or (self.is_key and len(self.values) <= _MAX_TICKS)

    def ticks(self) -> Sequence[Any]:
        """All values if they are few, otherwise round numbers."""
        if self.are_few:
            return self.values
        low, high = self.values[0], self.values[-1]
        if groups.is_log(self.values):
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if len(decades) > 4 else (1, 3)
            found = [step * 10.0**decade for decade in decades for step in steps]
        else:
            rough = (high - low) / 5
            unit = 10.0 ** math.floor(math.log10(rough))
            step = unit * next(factor for factor in (1, 2, 5, 10) if factor * unit >= rough)
            found = list(np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step)
        return [tick for tick in found if low <= tick <= high]


def draw(frames: Frames) -> alt.LayerChart | None:
    """Axes in the order of the documentation, each over the range of its values: numbers on a logarithmic scale where
    `groups.is_log`, words equally far apart. Lines that meet in a value spread out a little around its tick, the
    highest on top. `None` unless two keys differ: the other charts show one.
    """
    sweep = groups.find(frames)
    if sweep is None or len(sweep.keys) < 2:
        return None
    means = groups.over_seeds(groups.final_results(frames, sweep), sweep)
    measure = outcomes.compared(frames).title
    if len(means) < 2:
        return None
    keys = [key for key in sweep.keys if key in sweep.by_number_of_values()[:_MAX_KEYS]]
    axes = {key: _Axis(groups.title(key), sweep.keys[key], sweep.is_numeric(key)) for key in keys}
    axes["mean"] = _Axis(f"final {measure}", sorted(means["mean"]), is_numeric=True, is_key=False)
    points = [
        means[["group", "mean", "seeds"]].assign(at=at, place=means[name].map(axis.place) + _spread(means, name, axis))
        for at, (name, axis) in enumerate(axes.items())
    ]
    chart = alt.layer(*_scales(list(axes.values())), _lines(pd.concat(points), measure), *_labels(list(axes.values())))
    width = max(_MIN_WIDTH, _MIN_GAP * (len(axes) - 1))
    return style.apply(chart.properties(width=width, height=_HEIGHT), TITLE.format(measure=measure))


def _spread(means: pd.DataFrame, name: str, axis: _Axis) -> pd.Series | float:
    """How far each line is from its value's tick: less than halfway to the next one."""
    if not axis.are_few:
        return 0.0
    of_value = means.groupby(name)["mean"]
    rank, number = of_value.rank(method="first"), of_value.transform("size")
    return (2 * rank - 1 - number) / number.max() * min(_MAX_SPREAD, 0.35 / len(axis.values))


_X = alt.X("at:Q", axis=None, scale=alt.Scale(nice=False))
_Y = alt.Y("place:Q", axis=None, scale=alt.Scale(domain=[-_MAX_SPREAD, 1 + _MAX_SPREAD]))


def _lines(data: pd.DataFrame, measure: str) -> alt.Chart:
    pointed = alt.selection_point(name="group", fields=["group"], on="pointerover", empty=False)
    opacity = 0.85 if data["group"].nunique() <= _MAX_OPAQUE else 0.5
    return (
        alt.Chart(data)
        .mark_line()
        .encode(
            x=_X,
            y=_Y,
            detail="group:N",
            color=alt.Color("mean:Q", legend=None, scale=alt.Scale(range=list(style.ORDERED), interpolate="rgb")),
            opacity=alt.condition(pointed, alt.value(1.0), alt.value(opacity)),
            strokeWidth=alt.condition(pointed, alt.value(4), alt.value(1.3)),
            tooltip=["group", alt.Tooltip("mean", format=".4f", title=f"mean {measure}"), "seeds"],
        )
        .add_params(pointed)
    )


def _scales(axes: Sequence[_Axis]) -> list[alt.Chart]:
    """A rule for each axis."""
    ends = pd.DataFrame({"at": range(len(axes)), "place": -_MAX_SPREAD, "end": 1 + _MAX_SPREAD})
    return [alt.Chart(ends).mark_rule(color="#888888").encode(x=_X, y=_Y, y2="end:Q")]


def _labels(axes: Sequence[_Axis]) -> list[alt.Chart]:
    """Tick labels, outside of the first and the last axis; titles below."""
    labels = pd.DataFrame(
        {"at": at, "place": axis.place(tick), "label": groups.as_text(tick)}
        for at, axis in enumerate(axes)
        for tick in axis.ticks()
    )
    titles = pd.DataFrame({"at": at, "label": _broken(axis.title)} for at, axis in enumerate(axes))
    base = alt.Chart(labels).encode(x=_X, y=_Y, text="label:N")
    left = base.transform_filter("datum.at == 0").mark_text(align="right", dx=-6, fontSize=11, limit=110)
    inner = base.transform_filter("datum.at > 0")
    right: dict[str, Any] = {"align": "left", "dx": 5, "fontSize": 11, "limit": 110}
    halo = inner.mark_text(style="halo", strokeWidth=3, **right)
    below = alt.Chart(titles).mark_text(baseline="top", dy=10, fontSize=12, lineBreak="\n")
    return [left, halo, inner.mark_text(**right), below.encode(x=_X, y=alt.value(_HEIGHT), text="label:N")]


def _broken(text: str) -> str:
    """The text in lines short enough to stand side by side."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > _LINE:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
