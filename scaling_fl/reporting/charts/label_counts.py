"""Sites × labels: how many training examples of each label a site holds."""

import altair as alt

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Training examples by site and label"
CAPTION = "How many training examples of each label a site holds."
SEVERAL = False  # jobs in one picture
_PREFIX = "shard.label."


def draw(frames: Frames) -> alt.Chart | None:
    """A heat map."""
    counts = frames.sites[frames.sites["metric"].str.startswith(_PREFIX)].copy()
    if counts.empty:
        return None
    counts["label"] = counts["metric"].str.removeprefix(_PREFIX)
    labels, num_sites = list(dict.fromkeys(counts["label"])), counts["site"].nunique()
    chart = (
        alt.Chart(counts)
        .mark_rect()
        .encode(
            x=alt.X("label:N", title="label", sort=labels, axis=alt.Axis(labelAngle=-40)),
            y=alt.Y("site:O", title="site", axis=alt.Axis(labelOverlap="greedy")),
            color=alt.Color(
                "value:Q",
                title="examples",
                scale=alt.Scale(scheme=style.AMOUNTS, domainMin=0),
                legend=alt.Legend(orient="right"),
            ),
            tooltip=["site", "label", alt.Tooltip("value", format=",d", title="examples")],
        )
        .properties(width=max(120, min(style.WIDTH, 40 * len(labels))), height=max(80, min(400, 16 * num_sites)))
    )
    return style.apply(chart, TITLE)
