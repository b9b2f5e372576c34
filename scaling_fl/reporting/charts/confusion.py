"""The confusion matrix of the last evaluation on the test set."""

import altair as alt

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Confusion matrix of the test set"
CAPTION = "Each row is a true label, each column a predicted label. The colour is the share of the true label."
SEVERAL = False  # jobs in one picture
_MAX_NUMBERS = 12  # labels up to which the cells hold numbers


def draw(frames: Frames) -> alt.LayerChart | None:
    """A heat map; a cell's colour is its share of the true label."""
    cells = frames.confusion[frames.confusion["set"] == "validation"].copy()
    if cells.empty:
        return None
    labels = list(dict.fromkeys(cells["label"]))
    cells["share"] = cells["examples"] / cells.groupby("label")["examples"].transform("sum").clip(lower=1)
    size = max(160, min(420, 52 * len(labels)))
    base = alt.Chart(cells).encode(
        x=alt.X("predicted:N", title="predicted label", sort=labels, axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("label:N", title="true label", sort=labels),
    )
    colour = alt.Color(
        "share:Q", title="share", scale=alt.Scale(scheme=style.AMOUNTS, domain=[0, 1]),
        legend=alt.Legend(format="%", orient="right"),
    )  # fmt: skip
    tooltip = ["label", "predicted", "examples", alt.Tooltip("share", format=".1%")]
    layers: list[alt.Chart] = [base.mark_rect().encode(color=colour, tooltip=tooltip)]
    if len(labels) <= _MAX_NUMBERS:
        ink = alt.condition("datum.share > 0.5", alt.value("white"), alt.value("black"))
        layers.append(base.mark_text(fontSize=11).encode(text=alt.Text("examples:Q", format=",d"), color=ink))
    return style.apply(alt.layer(*layers).properties(width=size, height=size), TITLE)
