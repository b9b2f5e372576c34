"""The style of all charts: colours that colour-blind readers tell apart, and text that is legible in a column of a paper."""

from typing import Any, Final

import numpy as np

# Okabe and Ito (2008), without yellow, which is too light for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Light to dark, yet legible on white and in the dark: lines of an ordered quantity.
ORDERED = ("#F0A53A", "#DD6762", "#B04C9C", "#5A53C4")
AMOUNTS: Final = "blues"  # a scheme for amounts: light to dark, so that it also prints in grey
WIDTH, HEIGHT = 300, 190  # pixels of a panel; 72 are an inch on paper
SMALL = 165  # pixels: a panel of several in a row
MAX_MARKS = 40  # up to so many points of a line have a mark


def steps(number: int) -> list[str]:
    """So many colours of `ORDERED`, equally far apart."""
    anchors = [[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in ORDERED]
    at = np.linspace(0, len(anchors) - 1, number)
    channels = [
        np.interp(at, range(len(anchors)), channel).round().astype(int) for channel in zip(*anchors, strict=True)
    ]
    return ["#" + "".join(f"{value:02X}" for value in colour) for colour in zip(*channels, strict=True)]


def apply(chart: Any, title: str) -> Any:
    """The chart with its title and the common style."""
    text = {"font": "Liberation Sans, Arial, Helvetica, sans-serif"}
    return (
        chart.properties(title=title)
        .configure(**text, background="white", padding=8, style={"halo": {"fill": "white", "stroke": "white"}})
        .configure_axis(
            labelFontSize=11, titleFontSize=12, titleFontWeight="normal", gridColor="#e6e6e6", labelLimit=140
        )
        .configure_legend(
            labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelLimit=300, orient="bottom", columns=2
        )
        .configure_title(fontSize=13, anchor="start", offset=10)
        .configure_header(labelFontSize=12, titleFontSize=12, titleFontWeight="normal", labelPadding=5, titlePadding=2)
        .configure_view(stroke=None)
        .configure_range(category=list(COLOURS))
    )
