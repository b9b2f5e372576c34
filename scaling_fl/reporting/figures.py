"""Charts as files: SVG and PDF for papers, PNG for slides. No browser and no network is needed."""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from scaling_fl.errors import UserError
from scaling_fl.reporting import charts
from scaling_fl.reporting.frames import Frames

FORMATS = ("svg", "pdf", "png")
_MAX_SINGLE = 20  # jobs that get pictures of their own: these take seconds each
_PNG_SCALE = 3  # pixels of a file for each pixel of a chart: 216 per inch


def module(name: str) -> Any:
    """The module of a chart."""
    return importlib.import_module(f"{charts.__name__}.{name}")


def drawn(frames: Frames) -> dict[str, Any]:
    """The charts of one job by name, or those that compare several jobs. Charts without data are left out."""
    shown = [name for name in charts.NAMES if module(name).SEVERAL or len(frames.runs) == 1]
    found = {name: module(name).draw(frames) for name in shown}
    return {name: chart for name, chart in found.items() if chart is not None}


def write(frames: Frames, folder: Path, formats: Sequence[str] = ("svg",)) -> list[Path]:
    """Write every chart to `folder`, each in all `formats`; two to 20 jobs also get a folder each. Returns the paths.

    Raises `UserError` if the folder can't be written, or a format is none of `FORMATS`.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: expected some of {', '.join(FORMATS)}, separated by commas")
    written = _write(frames, folder, formats)
    for job in frames.runs["job"] if 1 < len(frames.runs) <= _MAX_SINGLE else ():
        written += _write(of_job(frames, job), folder / re.sub(r"[^\w.+-]", "_", job), formats)
    return written


def of_job(frames: Frames, job: str) -> Frames:
    """The frames of one job."""
    return frames._replace(
        **{
            name: frame[frame["job"] == job]
            for name, frame in frames._asdict().items()
            if isinstance(frame, pd.DataFrame)
        }
    )


def _write(frames: Frames, folder: Path, formats: Sequence[str]) -> list[Path]:
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alt.data_transformers.disable_max_rows():
            for name, chart in drawn(frames).items():
                for suffix in formats:
                    paths.append(folder / f"{name}.{suffix}")
                    chart.save(paths[-1], scale_factor=_PNG_SCALE if suffix == "png" else 1)
    except OSError as error:
        raise UserError(f"--figures {folder}: can't write there ({error.strerror}); choose another folder") from error
    return paths
