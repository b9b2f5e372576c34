"""Loss and accuracy by round: the global model's on the test set, the sites' on their own data, from worst to best."""

import altair as alt
import pandas as pd

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Learning curves"
CAPTION = "The global model is measured on the test set after each round. Sites are measured on their own data while they train. Point at a line to see one site."
SEVERAL = False  # jobs in one picture
_CURVES = {
    "validation": "global model, test set",
    "held_back": "global model, held-back rows",
    "train": "sites, training data (shaded: worst to best)",
}
_COLOURS = {"validation": style.COLOURS[0], "held_back": style.COLOURS[2], "train": style.COLOURS[1]}
_BAND = "train.worst_site", "train.best_site"


def draw(frames: Frames) -> alt.HConcatChart | None:
    """A panel for each measure."""
    values = frames.rounds.pivot_table(index="round", columns="metric", values="value").reset_index()
    panels = [panel for measure in ("loss", "accuracy") if (panel := _panel(values, frames.sites, measure)) is not None]
    return style.apply(alt.hconcat(*panels, spacing=24), TITLE) if panels else None


def _panel(values: pd.DataFrame, sites: pd.DataFrame, measure: str) -> alt.LayerChart | alt.FacetChart | None:
    curves = {f"{kind}.{measure}": name for kind, name in _CURVES.items() if f"{kind}.{measure}" in values}
    if not curves:
        return None
    title = "cross-entropy (nats)" if measure == "loss" else "accuracy"
    x = alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, format="d"))
    layers: list[alt.Chart] = []
    if {f"{end}.{measure}" for end in _BAND} <= set(values):
        ends = [f"{end}.{measure}" for end in _BAND]
        band = values[["round", *ends]].dropna().rename(columns=dict(zip(ends, ("worst", "best"), strict=True)))
        band["what"] = "worst to best site"
        layers.append(
            alt.Chart(band).mark_area(opacity=0.18, color=style.COLOURS[1]).encode(
                x=x, y=alt.Y("worst:Q", title=title), y2="best:Q",
                tooltip=["what", "round", alt.Tooltip("worst", format=".4f"), alt.Tooltip("best", format=".4f")],
            )
        )  # fmt: skip
    each = sites[sites["metric"] == f"train.{measure}"][["round", "site", "value"]]
    if len(each):
        nearest = alt.selection_point(name=f"site_{measure}", fields=["site"], on="pointerover", empty=False)
        layers.append(
            alt.Chart(each).mark_line(color=style.COLOURS[1]).encode(
                x=x, y=alt.Y("value:Q", title=title), detail="site:N",
                opacity=alt.condition(nearest, alt.value(1.0), alt.value(0.15)),
                strokeWidth=alt.condition(nearest, alt.value(2), alt.value(0.7)),
                tooltip=["site", "round", alt.Tooltip("value", format=".4f", title=title)],
            ).add_params(nearest)
        )  # fmt: skip
    tidy = values.melt("round", list(curves), "metric", "value").dropna()
    tidy["curve"] = tidy["metric"].map(curves)
    colours = {name: _COLOURS[metric.partition(".")[0]] for metric, name in curves.items()}
    layers.append(
        alt.Chart(tidy).mark_line(point=len(values) <= style.MAX_MARKS, strokeWidth=2).encode(
            x=x, y=alt.Y("value:Q", title=title, scale=alt.Scale(zero=False)),
            color=alt.Color("curve:N", title=None, scale=alt.Scale(domain=list(colours), range=list(colours.values()))),
            tooltip=["curve", "round", alt.Tooltip("value", format=".4f", title=title)],
        )
    )  # fmt: skip
    return alt.layer(*layers).properties(width=style.WIDTH, height=style.HEIGHT)
