"""Shard sizes: how many training examples each site holds."""

import altair as alt

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Training examples by site"
CAPTION = "How many training examples a site holds."
SEVERAL = False  # jobs in one picture


def draw(frames: Frames) -> alt.Chart | None:
    """Bars from the largest shard to the smallest."""
    sizes = frames.sites[frames.sites["metric"] == "shard.examples"].sort_values("value", ascending=False)
    if sizes.empty:
        return None
    chart = (
        alt.Chart(sizes)
        .mark_bar(color=style.COLOURS[0])
        .encode(
            x=alt.X(
                "site:N",
                title="site, largest first",
                sort=list(sizes["site"]),
                axis=alt.Axis(labelAngle=0, labelOverlap="greedy"),
            ),
            y=alt.Y("value:Q", title="training examples"),
            tooltip=["site", alt.Tooltip("value", format=",d", title="training examples")],
        )
        .properties(width=style.WIDTH, height=style.HEIGHT)
    )
    return style.apply(chart, TITLE)
