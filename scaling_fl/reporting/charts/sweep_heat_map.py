"""A sweep as a heat map: the final result by the two keys with the most values."""

from typing import Any

import altair as alt

from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import groups, panels, style
from scaling_fl.reporting.frames import Frames

TITLE = "Final {measure} by two keys"
CAPTION = "The two keys with the most values. A cell is the mean over all else that differs; seeds are averaged first."
SEVERAL = True  # jobs in one picture
_MAX_VALUES = 24  # of a key
_MIN_FILLED = 1 / 3  # of the cells: numbers drawn at random hardly meet
_MAX_NUMBERS = 9  # columns up to which the cells hold numbers


def draw(frames: Frames) -> alt.LayerChart | None:
    """The key with more values is horizontal. `None` if fewer than a third of the cells would hold a value."""
    sweep = groups.find(frames)
    if sweep is None:
        return None
    keys = [key for key in sweep.by_number_of_values() if len(sweep.keys[key]) <= _MAX_VALUES][:2]
    of_group = groups.over_seeds(groups.final_results(frames, sweep), sweep)
    measure = outcomes.compared(frames).title
    if len(keys) < 2 or of_group.empty:
        return None
    cells = of_group.groupby(keys, sort=False)["mean"].agg(["mean", "size"]).reset_index()
    cells = cells.rename(columns={"mean": "result", "size": "groups"})
    columns, rows = (sweep.keys[key] for key in keys)
    if len(cells) < max(2, _MIN_FILLED * len(columns) * len(rows)):
        return None
    low, high = cells["result"].min(), cells["result"].max()
    cells["dark"] = cells["result"] > low + 0.65 * (high - low)
    look: dict[str, Any] = {"labelOverlap": "greedy", "labelLimit": 110, "labelExpr": panels.LABEL}
    digits = ".2f" if high - low >= 0.1 or len(columns) > 7 else ".3f"
    flat = all(len(groups.as_text(value)) <= 5 for value in columns)
    base = alt.Chart(cells).encode(
        x=alt.X(
            f"{keys[0]}:O", title=groups.title(keys[0]), sort=columns,
            axis=alt.Axis(labelAngle=0 if flat else -40, **look),
        ),
        y=alt.Y(f"{keys[1]}:O", title=groups.title(keys[1]), sort=rows, axis=alt.Axis(**look)),
    )  # fmt: skip
    colour = alt.Color(
        "result:Q", title=measure, scale=alt.Scale(scheme=style.AMOUNTS, domain=[low, high]),
        legend=alt.Legend(gradientLength=200, format=digits, tickCount=4),
    )  # fmt: skip
    tooltip = [*keys, alt.Tooltip("result", format=".4f", title=f"mean {measure}"), alt.Tooltip("groups")]
    layers: list[alt.Chart] = [base.mark_rect().encode(color=colour, tooltip=tooltip)]
    if len(columns) <= _MAX_NUMBERS:
        ink = alt.condition("datum.dark", alt.value("white"), alt.value("black"))
        layers.append(base.mark_text(fontSize=11).encode(text=alt.Text("result:Q", format=digits), color=ink))
    width, height = max(120, min(style.WIDTH, 40 * len(columns))), max(70, min(340, 26 * len(rows)))
    room = {"left": 8, "top": 8, "bottom": 8, "right": 40}  # pixels: on the page, a button is in the corner
    return style.apply(
        alt.layer(*layers).properties(width=width, height=height, padding=room), TITLE.format(measure=measure)
    )
