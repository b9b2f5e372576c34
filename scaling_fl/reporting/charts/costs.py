"""Accuracy against what it cost: rounds, local steps, examples, seconds, bytes. A line for each job."""

import altair as alt

from scaling_fl.reporting.charts import differences, style
from scaling_fl.reporting.frames import Frames

TITLE = "Test accuracy against rounds, work, time and traffic"
CAPTION = (
    "The same accuracy against five costs. Bytes are the parameters as float32, to each site of the cohort and back."
)
SEVERAL = True  # jobs in one picture
_AXES = {
    "round": "rounds",
    "local_steps": "local steps of all sites",
    "examples": "training examples of all sites",
    "seconds": "time (s)",
    "bytes": "sent to and from sites (bytes)",
}


def draw(frames: Frames) -> alt.ConcatChart | None:
    """A panel for each cost, with the jobs' differing keys as legend."""
    accuracy = frames.rounds[frames.rounds["metric"] == "validation.accuracy"][["job", "round", "value"]]
    values = accuracy.merge(frames.costs, on=["job", "round"])
    if values.empty:
        return None
    values["name"] = values["job"].map(differences.names(frames.runs))
    several = values["job"].nunique() > 1
    panels = [
        alt.Chart(values)
        .mark_line(point=bool(values.groupby("job").size().max() <= style.MAX_MARKS))
        .encode(
            x=alt.X(f"{column}:Q", title=title, axis=alt.Axis(format="~s", tickCount=3)),
            y=alt.Y("value:Q", title="test accuracy", scale=alt.Scale(zero=False)),
            color=alt.Color("name:N", title=None, legend=alt.Legend() if several else None),
            tooltip=["name", alt.Tooltip("value", format=".4f", title="test accuracy"), *_AXES],
        )
        .properties(width=style.SMALL, height=style.SMALL)
        for column, title in _AXES.items()
        if column == "round" or values[column].max() > 0
    ]
    return style.apply(alt.concat(*panels, columns=3, spacing=20), TITLE)
