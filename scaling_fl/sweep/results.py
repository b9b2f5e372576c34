"""The results of a sweep: a tidy table with mean and deviation over seeds, as CSV, Parquet, Markdown and LaTeX; a page."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scaling_fl.config.key_help import as_command_line
from scaling_fl.reporting import frames, outcomes, page
from scaling_fl.reporting.charts.groups import REPLICATES
from scaling_fl.reporting.records import Found
from scaling_fl.sweep import cells
from scaling_fl.sweep.cells import Cell

_METRICS = (
    *outcomes.titles(()), "validation.choice_accuracy.best", "validation.accuracy.best",
    "site_test.mean_site.accuracy", "site_test.worst_site.accuracy", "personal.mean_site.accuracy",
    "personal.worst_site.accuracy", "dp.epsilon_pld", "bytes", "seconds",
)  # fmt: skip
_TITLES_OF_SITES = {
    "site_test.mean_site.accuracy": "mean site",
    "site_test.worst_site.accuracy": "worst site",
    "personal.mean_site.accuracy": "own models: mean site",
    "personal.worst_site.accuracy": "own models: worst site",
}


def write(sweep: str, all_cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write everything that the finished rounds show so far to `folder`; returns the paths. Nothing if no cell has begun."""
    states = {cell.name: cells.state(cell) for cell in all_cells}
    found = [state.record for state in states.values() if state.record is not None and state.status != "changed"]
    if not found:
        return []
    data = frames.of_records(found)
    varied = list(dict.fromkeys(key for cell in all_cells for key in cell.varied))
    spent = data.costs.groupby("job")["bytes"].max()
    rows = data.runs.assign(
        bytes=data.runs["job"].map(spent), complete=[states[name].status == "complete" for name in data.runs["job"]]
    )
    summary = aggregated(rows[rows["complete"]], varied)
    paths = {
        name: folder / name for name in ("cells.csv", "results.csv", "results.parquet", "results.md", "results.tex")
    }
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(paths["cells.csv"], index=False)
    plain = summary.assign(**{key: summary[key].map(_plain) for key in summary if summary[key].dtype == object})
    plain.to_csv(paths["results.csv"], index=False)
    plain.to_parquet(paths["results.parquet"], index=False)
    wide = as_table(summary)
    paths["results.md"].write_text(markdown(wide))
    paths["results.tex"].write_text(
        latex(wide, f"Results of the sweep {sweep}: mean and standard deviation over seeds.")
    )
    return [*paths.values(), page.write(Found(found, {}), folder / "report.html", f"Sweep {sweep}")]


def aggregated(rows: pd.DataFrame, varied: Sequence[str]) -> pd.DataFrame:
    """A row for each setting and metric: the varied keys but for seeds, metric, mean, std (n − 1), n."""
    keys = [key for key in varied if key in rows and key not in REPLICATES]
    metrics = [name for name in _METRICS if name in rows]
    if rows.empty:
        return pd.DataFrame(columns=[*keys, "metric", "mean", "std", "n"])
    tidy = rows[[*keys, *metrics]].melt(keys, metrics, "metric", "value")
    groups = tidy.groupby([*keys, "metric"], sort=False, dropna=False)["value"]
    return groups.agg(mean="mean", std="std", n="count").reset_index()


def as_table(summary: pd.DataFrame) -> pd.DataFrame:
    """A row for each setting, with text such as 0.912 ± 0.004 for each metric; (2 of 3) if a seed's isn't a number."""
    keys = [name for name in summary if name not in ("metric", "mean", "std", "n")]
    titles = outcomes.titles(set(summary["metric"])) | _TITLES_OF_SITES
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    seeds_of: dict[tuple[str, ...], int] = defaultdict(int)
    for row in summary.to_dict("records"):
        setting = tuple(_plain(row[key]) for key in keys)
        seeds_of[setting] = max(seeds_of[setting], row["n"])
    for row in summary.to_dict("records"):
        setting = tuple(_plain(row[key]) for key in keys)
        of_setting = rows.setdefault(setting, dict(zip(keys, setting, strict=True)))
        absent = row["n"] == 0 and not row["metric"].endswith("loss")  # only a loss can be another thing than a number
        if absent and row["metric"] in titles:
            of_setting.setdefault(titles[row["metric"]], "")
        elif row["metric"] in titles:
            seeds = of_setting.setdefault("seeds", str(seeds_of[setting]))
            fewer = "" if str(row["n"]) == seeds else f" ({row['n']} of {seeds})"  # the others aren't numbers
            of_setting[titles[row["metric"]]] = _with_deviation(row["mean"], row["std"]) + fewer
    return pd.DataFrame(list(rows.values())).fillna("")


def _plain(value: Any) -> str:
    """The value as it is typed; empty if the key isn't set, which pandas may hold as NaN."""
    return "" if value is None or value != value else as_command_line(value)


def _with_deviation(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "not a number"
    return f"{mean:.4f}" if math.isnan(std) else f"{mean:.4f} ± {std:.4f}"


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def latex(table: pd.DataFrame, caption: str) -> str:
    """A booktabs table."""
    escaped = table.rename(columns=_tex).map(_tex)
    text: str = escaped.to_latex(index=False, caption=_tex(caption), escape=False)
    return text


def _tex(text: Any) -> str:
    special = {
        **{character: rf"\{character}" for character in "&%_#${}"},
        "±": r"$\pm$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    }  # fmt: skip
    return "".join(special.get(character, character) for character in str(text))
