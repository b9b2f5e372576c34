"""The page of one or several jobs: one HTML file that opens without a network, with interactive charts."""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import altair as alt
import jinja2

from scaling_fl.errors import UserError
from scaling_fl.reporting import facts, figures, frames, libraries, outcomes
from scaling_fl.reporting.charts import differences
from scaling_fl.reporting.records import Found
from scaling_fl.tracking.record import Record

_MAX_JOBS = 12  # that have a section each; more jobs are only compared


class _Picture(NamedTuple):
    id: str
    title: str
    caption: str
    specification: str  # Vega-Lite, as JSON


class _Section(NamedTuple):
    """A job on the page."""

    id: str
    facts: facts.Facts
    pictures: list[_Picture]


def write(found: Found, path: Path, title: str = "") -> Path:
    """Write the page to `path`; see `render`. Raises `UserError` if it can't be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(*found, title))
    except OSError as error:
        raise UserError(f"--output {path}: can't write there ({error.strerror}); choose another file") from error
    return path


def render(found: list[Record], skipped: Mapping[str, str] = MappingProxyType({}), title: str = "") -> str:
    """The page as HTML. `skipped`: damaged records, with the reason; `title`: of several jobs."""
    data = frames.of_records(found)
    one_each = zip(found, data.runs["job"], strict=True)
    sections = [
        _section(f"job-{number}", record, figures.of_job(data, job))
        for number, (record, job) in enumerate(one_each if len(found) <= _MAX_JOBS else ())
    ]
    comparison = _pictures("comparison", data) if len(found) > 1 else []
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("report.html").render(
        title=sections[0].facts.name if len(found) == 1 else title or f"{len(found)} jobs",
        sections=sections,
        comparison=comparison,
        comparison_table=_table(data) if len(found) > 1 else None,
        skipped=skipped,
        style=_file("report.css"),
        script=_file("report.js"),
        libraries=libraries.javascript().replace("</script", "<\\/script"),
    )


def _file(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text()


def _section(id_: str, record: Record, data: frames.Frames) -> _Section:
    return _Section(id_, facts.of_job(record, data), _pictures(id_, data))


def _pictures(prefix: str, data: frames.Frames) -> list[_Picture]:
    with alt.data_transformers.disable_max_rows():
        return [_picture(f"{prefix}-{name}", name, chart) for name, chart in figures.drawn(data).items()]


def _picture(id_: str, name: str, chart: Any) -> _Picture:
    module = figures.module(name)
    specification = chart.to_dict()
    title = specification.pop("title")  # the page's heading says it
    specification["description"] = f"{title}. {module.CAPTION}"
    text = json.dumps(specification, default=str).replace("<", "\\u003c")  # no text of a user's ends the script
    return _Picture(id_, title, module.CAPTION, text)


def _table(data: frames.Frames) -> facts.Table:
    """A row for each job: what differs, and the results."""
    keys, titles = differences.differing_keys(data.runs), outcomes.titles(data.runs)
    results = [name for name in titles if name in data.runs]
    if (
        "num_sites" in keys
        and "sites_per_round" in keys
        and data.runs["num_sites"].equals(data.runs["sites_per_round"])
    ):
        keys.remove("sites_per_round")  # all sites take part
    rows = [
        [row["job"], row["status"], *(facts.as_text(row[key]) if differences.is_set(row[key]) else "" for key in keys), row["round"],
         *(facts.as_cell(row[name]) for name in results), facts.duration(row["seconds"])]
        for row in data.runs.to_dict("records")
    ]  # fmt: skip
    return facts.Table(["job", "status", *keys, "round", *(titles[name] for name in results), "time"], rows)
