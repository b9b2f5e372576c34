"""How much gradient reaches the pre-trained parameters after round 1, against the number of sites."""

import altair as alt

from scaling_fl.reporting.charts import groups, scaling
from scaling_fl.reporting.frames import Frames

TITLE = "Gradient of the pre-trained parameters after round 1"
CAPTION = f"Norms of the global model's gradient, recorded with log_gradient_norms=True. {scaling.CAPTION}"
SEVERAL = True  # jobs in one picture
_METRIC = "gradient_norm.pretrained"


def draw(frames: Frames) -> alt.LayerChart | alt.FacetChart | None:
    """On logarithmic axes, so that a power of the number of sites is a straight line."""
    sweep = groups.find(frames)
    if sweep is None:
        return None
    rounds = frames.rounds
    norms = rounds[(rounds["metric"] == _METRIC) & (rounds["round"] == 1) & (rounds["value"] > 0)]
    return scaling.draw(sweep.jobs.merge(norms[["job", "value"]], on="job"), sweep, TITLE, "gradient norm", is_log=True)
