"""Accuracy against what it cost: rounds, local steps, examples, seconds, bytes. A line for each job.

Up to ten jobs have a colour and a name each. More are coloured by the key that `panels.layout` chooses.
"""

from typing import Any

import altair as alt

from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import differences, groups, panels, style
from scaling_fl.reporting.frames import Frames

TITLE = "{Measure} against rounds, work, time and traffic"
CAPTION = (
    "The same results against five costs. Bytes are what a network would carry to the sites of each cohort and back."
)
SEVERAL = True  # jobs in one picture
_MAX_NAMES = 10  # of jobs, in the legend
_AXES = {
    "round": "rounds",
    "local_steps": "local steps of all sites",
    "examples": "training examples of all sites",
    "seconds": "time (s)",
    "bytes": "sent to and from sites (bytes)",
}


def draw(frames: Frames) -> alt.ConcatChart | None:
    """A panel for each cost, with the jobs' differing keys as legend, or the values of one key if the jobs are many."""
    metric, measure, _ = outcomes.compared(frames)
    results = frames.rounds[frames.rounds["metric"] == metric][["job", "round", "value"]]
    values = results.merge(frames.costs, on=["job", "round"])
    if values.empty:
        return None
    values["name"] = values["job"].map(differences.names(frames.runs))
    number, most_points = values["job"].nunique(), values.groupby("job").size().max()
    colour: Any = alt.Color("name:N", title=None, legend=alt.Legend() if number > 1 else None)
    if number > _MAX_NAMES:
        sweep = groups.find(frames)
        values = values if sweep is None else values.merge(sweep.jobs.drop(columns="group"), on="job")
        colour = alt.value(style.COLOURS[0]) if sweep is None else panels.colour(sweep, panels.layout(sweep).colour)
    look: dict[str, Any] = (
        {"strokeWidth": 0.8} if number > _MAX_NAMES else {"point": bool(most_points <= style.MAX_MARKS)}
    )
    shown = [
        alt.Chart(values)
        .mark_line(**look)
        .encode(
            x=alt.X(f"{column}:Q", title=title, axis=alt.Axis(format="~s", tickCount=3)),
            y=alt.Y("value:Q", title=measure, scale=alt.Scale(zero=False)),
            color=colour,
            detail="job:N",
            tooltip=["name", alt.Tooltip("value", format=".4f", title=measure), *_AXES],
        )
        .properties(width=style.SMALL, height=style.SMALL)
        for column, title in _AXES.items()
        if column == "round" or values[column].max() > 0
    ]
    return style.apply(alt.concat(*shown, columns=3, spacing=20), TITLE.format(Measure=measure.capitalize()))
