"""Where gradient reaches: norms of the global model's gradient by layer and round, from `log_gradient_norms=True`."""

from collections.abc import Iterable
from typing import Any

import altair as alt

from scaling_fl.reporting.charts import style
from scaling_fl.reporting.frames import Frames

TITLE = "Gradient by layer"
CAPTION = (
    "Norms of the global model's gradient after each round, on a fixed batch of training examples, without dropout."
)
SEVERAL = False  # jobs in one picture
_PREFIX = "gradient_norm."
_SUMS = ("pretrained", "head")  # of several layers


def draw(frames: Frames) -> alt.Chart | None:
    """A line for each layer, from the first (light) to the last (dark), on a logarithmic axis."""
    rounds = frames.rounds[frames.rounds["metric"].str.startswith(_PREFIX)]
    values = rounds.assign(layer=rounds["metric"].str.removeprefix(_PREFIX))
    values = values[~values["layer"].isin(_SUMS) & (values["value"] > 0)]
    if values.empty:
        return None
    layers = _in_order(values["layer"].unique())
    names = [_short(layer) for layer in layers]
    if len(set(names)) < len(names):
        names = layers
    values["name"] = values["layer"].map(dict(zip(layers, names, strict=True)))
    chart = (
        alt.Chart(values)
        .mark_line(point=values["round"].nunique() <= style.MAX_MARKS, strokeWidth=1.6)
        .encode(
            x=alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(
                "value:Q",
                title="gradient norm",
                scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(tickCount=5, format="~g"),
            ),
            color=alt.Color("name:N", title=None, scale=alt.Scale(domain=names, range=style.steps(len(names)))),
            tooltip=["layer", "round", alt.Tooltip("value", format=".3g", title="gradient norm")],
        )
        .properties(width=style.WIDTH, height=style.HEIGHT)
    )
    return style.apply(chart, TITLE)


def _in_order(layers: Iterable[str]) -> list[str]:
    """The base model's layers, which are named after it, by number; then the head's, the `classifier` last."""
    bases = {layer.partition(".")[0] for layer in layers if layer[-1].isdigit()}

    def place(layer: str) -> tuple[Any, ...]:
        numbers = [int(part) if part.isdigit() else -1 for part in layer.split(".")]
        return layer.partition(".")[0] not in bases, layer == "classifier", layer.rstrip("0123456789"), numbers

    return sorted(layers, key=place)


def _short(layer: str) -> str:
    """`layer 3` of `bert.encoder.layer.3`, `pooler` of `bert.pooler`."""
    *_, last = parts = layer.split(".")
    return " ".join(parts[-2:]) if last.isdigit() else last
