"""Final test accuracy against the number of sites, or against another number: does it scale?"""

import altair as alt

from scaling_fl.reporting.charts import groups, scaling
from scaling_fl.reporting.frames import Frames

TITLE = "Final test accuracy by scale"
CAPTION = scaling.CAPTION
SEVERAL = True  # jobs in one picture


def draw(frames: Frames) -> alt.LayerChart | alt.FacetChart | None:
    """The accuracy after the last round of the jobs that have completed."""
    sweep = groups.find(frames)
    return sweep and scaling.draw(groups.final_accuracy(frames, sweep), sweep, TITLE, "test accuracy")
