"""Where a picture of a sweep shows its keys: colours, dashes and small multiples."""

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

import altair as alt
import pandas as pd

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.charts.groups import Sweep, as_text, is_log, title

_TASKS = ("task_name", "dataset", "train_path", "test_path")  # accuracies of different tasks are panels, not lines
_MAX_PANELS, _MAX_COLUMNS, _MAX_ROWS, _MAX_DASHES = 12, 3, 6, 3
_SIZES = {2: {"width": 148, "height": 112}, 3: {"width": 106, "height": 96}}  # pixels of a panel, by columns
# A value on an axis: 5e-6, not 0.000005.
LABEL: Final = (
    "isNumber(datum.value) && datum.value != 0 && (abs(datum.value) < 1e-4 || abs(datum.value) >= 1e6)"
    " ? replace(format(datum.value, '~e'), '+', '') : datum.label"
)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
_MAX_STEPS = 8  # numbers that get a colour each; more share a continuous scale


class Layout(NamedTuple):
    """The keys that colour, dashes and panels show."""

    colour: str | None
    dash: str | None
    columns: str | None
    rows: str | None


def layout(sweep: Sweep, taken: Collection[str] = ()) -> Layout:
    """Where to show the keys that aren't `taken`.

    Colour: the numeric key with the most values, if it has three or more, otherwise the key with the most values of
    which each can have a colour; what tells tasks apart only if nothing else differs. Panels: what tells tasks apart,
    then the first keys of the documentation, at most two: up to 12 panels, in up to 6 rows of 3 if two keys make a
    grid, and the key with fewer values makes the columns. Dashes: a further key with up to three values. Keys beyond
    that only have lines and points of their own.
    """
    rest = [key for key in sweep.keys if key not in taken]
    tasks = [key for key in rest if key in _TASKS]
    size = {key: len(sweep.keys[key]) for key in rest}
    candidates = [key for key in rest if key not in tasks] or rest
    coloured = [key for key in candidates if sweep.is_numeric(key) or size[key] <= len(style.COLOURS)]
    colour = max(coloured, key=lambda key: (sweep.is_numeric(key) and size[key] > 2, size[key]), default=None)
    panels = list[str]()
    for key in [*tasks, *(key for key in rest if key not in tasks)]:
        if key != colour and _fits(sorted(size[chosen] for chosen in [*panels, key])):
            panels.append(key)
    dashes = [key for key in rest if key not in (colour, *panels) and size[key] <= _MAX_DASHES]
    columns, rows, *_ = [*sorted(panels, key=size.__getitem__), None, None]
    return Layout(colour, dashes[0] if dashes else None, columns, rows)


def _fits(panels: Sequence[int]) -> bool:
    match panels:
        case [one]:
            return one <= _MAX_PANELS
        case [columns, rows]:
            return columns <= _MAX_COLUMNS and rows <= _MAX_ROWS and columns * rows <= _MAX_PANELS
    return False


def is_continuous(sweep: Sweep, key: str | None) -> bool:
    """Whether a key has too many numbers for a colour each."""
    return key is not None and sweep.is_numeric(key) and len(sweep.keys[key]) > _MAX_STEPS


def colour(sweep: Sweep, key: str | None, channel: Any = alt.Color, has_legend: bool = True) -> Any:
    """The colour of a key's values, as an encoding `channel`: steps or a scale for numbers, distinct colours for words."""
    if key is None:
        return alt.value(style.COLOURS[0])
    values = sweep.keys[key]
    if is_continuous(sweep, key):
        scale = alt.Scale(type="log" if is_log(values) else "linear", range=list(style.ORDERED), interpolate="rgb")
        bar = alt.Legend(type="gradient", gradientLength=200, tickCount=4, format="~g", labelExpr=LABEL)
        return channel(f"{key}:Q", title=title(key), scale=scale, legend=bar if has_legend else None)
    of_values = style.steps(len(values)) if sweep.is_numeric(key) else list(style.COLOURS[: len(values)])
    scale, kind = alt.Scale(domain=values, range=of_values), "O" if sweep.is_numeric(key) else "N"
    return channel(f"{key}:{kind}", title=title(key), scale=scale, legend=legend(values) if has_legend else None)


def dash(sweep: Sweep, key: str | None) -> Any:
    """The dashes of a key's values."""
    if key is None:
        return alt.value([1, 0])
    values = sweep.keys[key]
    scale = alt.Scale(domain=values, range=[[1, 0], [6, 3], [2, 2]][: len(values)])
    return alt.StrokeDash(f"{key}:N", title=title(key), scale=scale, legend=legend(values))


def shape(sweep: Sweep, key: str | None) -> Any:
    """The shape of points beside their `colour`, so that words are told apart in black and white."""
    if key is None or sweep.is_numeric(key):
        return alt.value("circle")
    values = sweep.keys[key]
    scale = alt.Scale(domain=values, range=list(_SHAPES[: len(values)]))
    return alt.Shape(f"{key}:N", title=title(key), scale=scale, legend=legend(values))


def legend(values: Sequence[Any]) -> alt.Legend:
    """As many entries in a row as fit above 300 pixels."""
    widest = max(len(as_text(value)) for value in values)
    columns = max(1, min(len(values), 300 // (30 + 7 * widest)))
    return alt.Legend(columns=columns, labelExpr=LABEL, symbolOpacity=1)


def draw(layers: Sequence[alt.Chart], data: pd.DataFrame, sweep: Sweep, chosen: Layout, heading: str) -> Any:
    """The layers over `data`, in one panel or in small multiples; about 300 to 400 pixels wide."""
    layered = alt.layer(*layers, data=data)
    if chosen.columns is None:
        return style.apply(layered.properties(width=style.WIDTH, height=style.HEIGHT), heading)
    number = len(sweep.keys[chosen.columns])
    columns = 2 if number in (2, 4) else 3
    layered = layered.properties(**_SIZES[columns])
    if chosen.rows is None:
        facet = alt.Facet(f"{chosen.columns}:N", **_head(sweep, chosen.columns))
        return style.apply(layered.facet(facet, columns=columns, spacing=12), heading)
    column = alt.Column(f"{chosen.columns}:N", **_head(sweep, chosen.columns))
    row = alt.Row(f"{chosen.rows}:N", **_head(sweep, chosen.rows))
    return style.apply(layered.facet(column=column, row=row, spacing=12), heading)


def _head(sweep: Sweep, key: str) -> dict[str, Any]:
    return {"sort": sweep.keys[key], "title": title(key), "header": alt.Header(labelExpr=LABEL)}
