"""The final result against the number of sites, or against another number: does it scale?"""

import altair as alt

from scaling_fl.reporting import outcomes
from scaling_fl.reporting.charts import groups, scaling
from scaling_fl.reporting.frames import Frames

TITLE = "Final {measure} by scale"
CAPTION = scaling.CAPTION
SEVERAL = True  # jobs in one picture


def draw(frames: Frames) -> alt.LayerChart | alt.FacetChart | None:
    """The result after the last round of the jobs that have completed."""
    sweep = groups.find(frames)
    measure = outcomes.compared(frames).title
    title = TITLE.format(measure=measure)
    return sweep and scaling.draw(groups.final_results(frames, sweep), sweep, title, measure)
