"""A sweep as small multiples: results by round. `panels.layout` says which key becomes colour, panel or dash."""

import altair as alt

from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import groups, panels
from scaling_fl.reporting.frames import Frames

TITLE = "{Measure} by round"
CAPTION = "A line is the mean over seeds. Shaded: one standard deviation, of two seeds the range; only where up to 12 lines share a panel."
SEVERAL = True  # jobs in one picture
_MAX_BANDS = 12  # in a panel


def draw(frames: Frames) -> alt.LayerChart | alt.FacetChart | None:
    """A line for each group of jobs that differ only in their seeds."""
    sweep = groups.find(frames)
    if sweep is None:
        return None
    metric, measure, _ = outcomes.compared(frames)
    results = frames.rounds[frames.rounds["metric"] == metric][["job", "round", "value"]]
    values = groups.over_seeds(sweep.jobs.merge(results, on="job"), sweep, "round")
    later = values.sort_values("round", ascending=False).groupby("group")["seeds"].cummax()
    values = values[
        values["seeds"] >= later.reindex(values.index)
    ]  # not the rounds that only some of the seeds evaluate
    if values["group"].nunique() < 2:
        return None
    layout = panels.layout(sweep)
    in_panels = [key for key in (layout.columns, layout.rows) if key is not None]
    heads = values.drop_duplicates("group")
    most = heads.groupby(in_panels).size().max() if in_panels else len(heads)
    ticks = 5 if layout.columns is None else 3
    base = alt.Chart().encode(
        x=alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, tickCount=ticks, format="d")),
        detail="group:N",
        color=panels.colour(sweep, layout.colour),
    )
    line = base.mark_line(strokeWidth=1.6 if most <= _MAX_BANDS else 1).encode(
        y=alt.Y("mean:Q", title=measure, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        strokeDash=panels.dash(sweep, layout.dash),
        tooltip=["group", "round", alt.Tooltip("mean", format=".4f", title=f"mean {measure}"), "seeds"],
    )
    band = base.mark_area(opacity=0.18).encode(y=alt.Y("low:Q", title=measure), y2="high:Q")
    has_bands = most <= _MAX_BANDS and values["seeds"].max() > 1 and not panels.is_continuous(sweep, layout.colour)
    layers = [band, line] if has_bands else [line]
    return panels.draw(layers, values, sweep, layout, TITLE.format(Measure=measure.capitalize()))
