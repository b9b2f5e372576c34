"""A measure of a sweep's jobs against the number of sites, or against another number: means over seeds with bars."""

from typing import Any

import altair as alt
import pandas as pd

from scaling_fl.reporting.charts import groups, panels

CAPTION = "A line joins the means over seeds; small circles are single jobs. Bars: one standard deviation, of two seeds the range. Colours are set slightly apart."
_FIRST = "num_sites"
_MAX_TICKS = 10  # values that all have a tick
_MAX_APART = 8  # colours that are set apart,
_APART = 0.016  # each by so much of the axis, so that bars don't hide each other


def draw(
    jobs: pd.DataFrame, sweep: groups.Sweep, title: str, measure: str, is_log: bool = False
) -> alt.LayerChart | alt.FacetChart | None:
    """Draw `value` of `jobs` (`sweep.jobs` with a value), named `measure`, on a logarithmic axis if `is_log`.

    Means with bars over `num_sites` if it differs, otherwise over the numeric key with the most values. The axis doubles
    from tick to tick if all values are powers of two. `panels.layout` says where the other keys are.
    """
    numeric = [key for key in sweep.by_number_of_values() if sweep.is_numeric(key)]
    if not numeric or jobs.empty:
        return None
    key = _FIRST if _FIRST in numeric else numeric[0]
    means = groups.over_seeds(jobs, sweep)
    if means[key].nunique() < 2:
        return None
    layout = panels.layout(sweep, taken=(key,))
    series = [other for other in sweep.keys if other != key]
    data = pd.concat([means, jobs.rename(columns={"value": "single"})], ignore_index=True)
    data["series"] = data[series].astype(str).agg(", ".join, axis=1) if series else ""
    data["x"] = _set_apart(data, key, layout.colour, sweep)
    scale = alt.Scale(type="log", nice=False, padding=8) if is_log else alt.Scale(zero=False)
    ticks = alt.Axis(tickCount=5, format="~g" if is_log else "", labelExpr=panels.LABEL if is_log else alt.Undefined)
    look: dict[str, Any] = {"title": measure, "scale": scale, "axis": ticks}
    return panels.draw(_layers(data, key, layout, sweep, look), data, sweep, layout, title)


def _layers(
    data: pd.DataFrame, key: str, layout: panels.Layout, sweep: groups.Sweep, look: dict[str, Any]
) -> list[alt.Chart]:
    shape = panels.shape(sweep, layout.colour)
    lines = points = {"color": panels.colour(sweep, layout.colour)}
    if panels.is_continuous(sweep, layout.colour):  # one channel for both would have a legend of single values
        lines = {"stroke": panels.colour(sweep, layout.colour, alt.Stroke, has_legend=False)}
        points = {"fill": panels.colour(sweep, layout.colour, alt.Fill)}
    digits = ".3g" if look["scale"].to_dict().get("type") == "log" else ".4f"
    y, low = alt.Y("mean:Q", **look), alt.Y("low:Q", **look)
    base = alt.Chart().encode(x=_axis(key, sweep))
    means = base.transform_filter("isValid(datum.mean)")
    tooltip = ["group", alt.Tooltip("mean", format=digits, title=f"mean {look['title']}"), "low", "high", "seeds"]
    layers = [
        means.mark_rule(strokeWidth=1.2).encode(y=low, y2="high:Q", **lines),
        means.mark_line(strokeWidth=1.6).encode(
            y=y, detail="series:N", strokeDash=panels.dash(sweep, layout.dash), **lines
        ),
        means.mark_point(filled=True, size=38, opacity=1).encode(y=y, shape=shape, tooltip=tooltip, **points),
    ]
    if data["seeds"].max() > 1:
        single = base.transform_filter("isValid(datum.single)").mark_point(size=12, strokeWidth=1, opacity=0.6)
        value = alt.Tooltip("single", format=digits, title=look["title"])
        layers.append(single.encode(y=alt.Y("single:Q", **look), tooltip=["job", value], **lines))
    return layers


def _set_apart(data: pd.DataFrame, key: str, colour: str | None, sweep: groups.Sweep) -> pd.Series:
    """Where to draw each row: beside its value of `key`, by colour."""
    values, colours = sweep.keys[key], sweep.keys[colour] if colour is not None else []
    if not 2 <= len(colours) <= _MAX_APART:
        return data[key]
    offset = (data[colour].map(colours.index) - (len(colours) - 1) / 2) * _APART
    if groups.is_log(values):
        return data[key] * (values[-1] / values[0]) ** offset
    return data[key] + (values[-1] - values[0]) * offset


def _axis(key: str, sweep: groups.Sweep) -> alt.X:
    values = sweep.keys[key]
    ticks: dict[str, Any] = {"values": values} if len(values) <= _MAX_TICKS else {"tickCount": 5}
    kind: dict[str, Any] = {"type": "log"} if groups.is_log(values) else {"zero": False}
    if groups.are_powers_of_two(values):
        kind["base"] = 2
    scale = alt.Scale(nice=False, padding=8, **kind)
    axis = alt.Axis(format="~g", labelExpr=panels.LABEL, labelOverlap="greedy", **ticks)
    return alt.X("x:Q", title=groups.title(key), scale=scale, axis=axis)
