"""Where the time goes: seconds of each phase, stacked, by round."""

import altair as alt

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Time by phase"
CAPTION = "Seconds of each round. Checkpoints are written beside the next round."
SEVERAL = False  # jobs in one picture
_NAMES = {
    "busy": "training",
    "idle": "waiting for the slowest site",
    "aggregate": "aggregation",
    "evaluate": "evaluation",
}


def draw(frames: Frames) -> alt.Chart | None:
    """Stacked bars. Checkpoints are left out: they are written beside the next round."""
    by_phase = frames.phases.pivot_table(index="round", columns="phase", values="seconds").fillna(0.0)
    if "train" not in by_phase:
        return None
    by_phase["idle"] = by_phase.get("idle", 0.0)
    by_phase["busy"] = by_phase["train"] - by_phase["idle"]
    shown = [phase for phase in _NAMES if phase in by_phase]
    values = by_phase.reset_index().melt("round", shown, "phase", "seconds")
    values["name"], values["order"] = values["phase"].map(_NAMES), values["phase"].map(list(_NAMES).index)
    names = [_NAMES[phase] for phase in shown]
    chart = (
        alt.Chart(values)
        .mark_bar(size=max(1.0, min(24.0, 0.8 * style.WIDTH / len(by_phase))))
        .encode(
            x=alt.X(
                "round:Q",
                title="round",
                axis=alt.Axis(tickMinStep=1, format="d"),
                scale=alt.Scale(padding=14, nice=False),
            ),
            y=alt.Y("sum(seconds):Q", title="time (s)"),
            color=alt.Color(
                "name:N", title=None, scale=alt.Scale(domain=names, range=list(style.COLOURS[: len(names)]))
            ),
            order=alt.Order("order:Q"),
            tooltip=["round", "name", alt.Tooltip("seconds", format=".3f")],
        )
        .properties(width=style.WIDTH, height=style.HEIGHT)
    )
    return style.apply(chart, TITLE)
