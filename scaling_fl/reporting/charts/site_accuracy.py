"""How accuracy is distributed over sites: the share of sites below each accuracy, the mean, and the worst tenth."""

import math

import altair as alt
import pandas as pd

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Accuracy over sites, last round"
CAPTION = (
    "The line rises to the share of sites whose accuracy is at most the value on the horizontal axis: on test rows of their "
    "own with site_test, otherwise in training."
)
SEVERAL = False  # jobs in one picture
_METRICS = {  # the first that was measured is drawn
    "personal.accuracy": "own model's accuracy on the own test rows",
    "site_test.accuracy": "accuracy on the own test rows",
    "train.accuracy": "training accuracy",
}


def draw(frames: Frames) -> alt.LayerChart | None:
    """The empirical distribution function."""
    measured = set(frames.sites["metric"])
    metric = next((name for name in _METRICS if name in measured), None)
    if metric is None:
        return None
    title, values = _METRICS[metric], frames.sites[frames.sites["metric"] == metric]
    last = (
        values[values["round"] == values["round"].max()].sort_values("value")[["site", "value"]].reset_index(drop=True)
    )
    last["share"] = (last.index + 1) / len(last)
    worst = last["value"].head(math.ceil(len(last) / 10)).mean()
    marks = pd.DataFrame(
        {"value": [last["value"].mean(), worst], "what": ["mean of the sites", "mean of the worst tenth"]}
    )
    x = alt.X(
        "value:Q",
        title=f"{title} of a site",
        scale=alt.Scale(zero=False, nice=True),
        axis=alt.Axis(tickCount=5),
    )
    steps = alt.Chart(last).mark_line(interpolate="step-after", color=style.COLOURS[0]).encode(
        x=x, y=alt.Y("share:Q", title="share of sites", scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%"))
    )  # fmt: skip
    points = alt.Chart(last).mark_circle(color=style.COLOURS[0], size=40).encode(
        x=x, y="share:Q", tooltip=["site", alt.Tooltip("value", format=".4f", title=title)]
    )  # fmt: skip
    names = list(marks["what"])
    rules = alt.Chart(marks).mark_rule(strokeWidth=2).encode(
        x=x,
        color=alt.Color("what:N", title=None, scale=alt.Scale(domain=names, range=[style.COLOURS[2], style.COLOURS[1]])),
        strokeDash=alt.StrokeDash("what:N", title=None, scale=alt.Scale(domain=names, range=[[1, 0], [5, 3]])),
        tooltip=["what", alt.Tooltip("value", format=".4f")],
    )  # fmt: skip
    return style.apply(alt.layer(steps, points, rules).properties(width=style.WIDTH, height=style.HEIGHT), TITLE)
