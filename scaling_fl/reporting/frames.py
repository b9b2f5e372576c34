"""Records of jobs as tidy pandas data frames: one observation a row.

    from scaling_fl.reporting import frames
    found = frames.load("runs")

Nothing is unpickled. docs/reports.md describes the columns.
"""

import io
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import local_work
from scaling_fl.reporting import records
from scaling_fl.tracking import predictions_file
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import Record

_BYTES_PER_PARAMETER = 4  # float32
_COLUMNS = {
    "rounds": ("job", "round", "metric", "value"),
    "sites": ("job", "round", "site", "metric", "value"),
    "phases": ("job", "round", "phase", "seconds"),
    "costs": ("job", "round", "local_steps", "examples", "seconds", "bytes"),
    "confusion": ("job", "round", "set", "label", "predicted", "examples"),
    "predictions": ("job", "row", "label", "predicted", "probability", "text", "text_pair"),
}


class Frames(NamedTuple):
    """Tidy frames over all jobs; `job` is the key that joins them."""

    runs: pd.DataFrame  # a row per job: its keys, status, seconds, final metrics
    rounds: pd.DataFrame  # job, round, metric, value: of the whole federation
    sites: pd.DataFrame  # job, round, site, metric, value; the shards are in round 0
    phases: pd.DataFrame  # job, round, phase, seconds
    costs: pd.DataFrame  # job, round, and what was spent up to its end: local steps, examples, seconds, bytes
    confusion: pd.DataFrame  # job, round, set, label, predicted, examples: of the last evaluation
    predictions: pd.DataFrame  # job, row, label, predicted, probability, text: for the test set, by the last model
    skipped: dict[str, str]  # damaged and foreign records: place -> reason


def load(*sources: str | Path, runs: str | Path = "runs", database: Address | None = None) -> Frames:
    """The frames of all jobs in `sources`; see `records.find`. Raises `UserError` if a source doesn't exist."""
    found = records.find(*sources, runs=runs, database=database)
    return of_records(found.records, found.skipped)


def of_records(found: list[Record], skipped: dict[str, str] | None = None) -> Frames:
    """The frames of `found`. Jobs that share a name also get the beginning of their id."""
    count = Counter(record.info["job_name"] for record in found)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("runs", *_COLUMNS)}
    for record in found:
        name = record.info["job_name"]
        job = name if count[name] == 1 else f"{name} ({record.info['job_id'][:8]})"
        rows["runs"].append({"job": job} | _run(record))
        _add_metrics(job, record, rows)
        rows["sites"] += _shards(job, record)
        rows["costs"] += _costs(job, record)
        rows["confusion"] += _confusion(job, record)
        rows["predictions"] += _predictions(job, record)
    tidy = {name: pd.DataFrame(rows[name], columns=list(columns)) for name, columns in _COLUMNS.items()}
    return Frames(runs=pd.DataFrame(rows["runs"]), **tidy, skipped=skipped or {})


def _run(record: Record) -> dict[str, Any]:
    """The job's row: keys as they were used, and the last value of each metric, with the best one beside it."""
    result = record.result()
    metrics = dict[str, float]()
    for kind, measures in result.items():
        for measure, of_metric in measures.items() if kind != "round" else ():
            for which, value in of_metric.items():
                suffix = "" if which == "last" else f".{which}"
                metrics[f"{kind}.{measure}{suffix}"] = float(value) if which == "last" else value
    for name, points in record.metrics.items():
        if name.startswith("dp.epsilon") and result["round"] in points:
            metrics[name] = points[result["round"]][0]
    keys = record.config | record.info.get("resolved", {})
    order = [*Config().to_mapping(), *keys]  # of the documentation, then keys of other versions
    return {
        "job_id": record.info["job_id"],
        "status": record.entry["status"],
        "round": result["round"],
        "started": pd.Timestamp(record.entry["start_time"]),
        "seconds": sum(value for _, _, value in _seconds(record)),
        "num_parameters": record.info.get("num_parameters"),
        **{key: _hashable(keys[key]) for key in dict.fromkeys(order) if key in keys and key != "job_name"},
        **dict(sorted(metrics.items())),
    }


def _hashable(value: Any) -> Any:
    """Lists as tuples, so that frames can be grouped by any key."""
    return tuple(value) if isinstance(value, list) else value


def _seconds(record: Record) -> list[tuple[int, str, float]]:
    """Round, phase and seconds of the phases that follow each other: checkpoints are written beside them, and idle time
    is part of the training.
    """
    return [
        (round_, name.removeprefix("seconds."), value)
        for name, points in record.metrics.items()
        if name.startswith("seconds.") and name not in ("seconds.idle", "seconds.checkpoint")
        for round_, (value, _) in points.items()
    ]


def _add_metrics(job: str, record: Record, rows: dict[str, list[dict[str, Any]]]) -> None:
    for name, points in sorted(record.metrics.items()):
        kind, _, rest = name.partition(".")
        for round_, (value, _) in sorted(points.items()):
            at = {"job": job, "round": round_}
            if kind == "seconds":
                rows["phases"].append(at | {"phase": rest, "seconds": value})
            elif kind == "site":
                number, _, metric = rest.partition(".")
                rows["sites"].append(at | {"site": int(number), "metric": metric, "value": value})
            else:
                rows["rounds"].append(at | {"metric": name, "value": value})


def _shards(job: str, record: Record) -> list[dict[str, Any]]:
    labels = record.info.get("label_names", ())
    rows = []
    for shard in record.shards:
        values = {f"shard.{name}": shard[name] for name in ("examples", "label_entropy_bits") if name in shard}
        values |= {f"shard.label.{name}": n for name, n in zip(labels, shard.get("label_counts", ()), strict=False)}
        values |= {"shard.attack": 1} if shard.get("attack") else {}
        rows += [
            {"job": job, "round": 0, "site": shard["site"], "metric": name, "value": float(value)}
            for name, value in values.items()
        ]
    return rows


def _costs(job: str, record: Record) -> list[dict[str, Any]]:
    """What was spent up to the end of each round; empty if the record doesn't hold the shards.

    bytes: what a network would carry to the sites and back. Records of versions that didn't measure it count the
    parameters as float32. Baselines send none.
    """
    try:
        config = Config.from_mapping(
            {key: value for key, value in record.config.items() if key in Config().to_mapping()}
        )
    except UserError:  # keys of another version
        return []
    sizes = [shard["examples"] for shard in record.shards]
    model = record.info.get("num_parameters", math.nan) * _BYTES_PER_PARAMETER
    seconds: dict[int, float] = defaultdict(float)
    for round_, _, value in _seconds(record):
        seconds[round_] += value
    spent = {"local_steps": 0, "examples": 0, "seconds": 0.0, "bytes": 0.0}
    rows = []
    for round_ in range(record.result()["round"] + 1) if sizes else ():
        sites = local_work.of_round(config, sizes, round_) if round_ else []
        spent["local_steps"] += sum(site.steps for site in sites)
        spent["examples"] += sum(site.examples for site in sites)
        spent["seconds"] += seconds[round_]
        if round_ in record.metrics.get("bytes.up", ()):
            spent["bytes"] += sum(record.metrics[name][round_][0] for name in ("bytes.up", "bytes.down"))
        elif sites and config.baseline is None:
            spent["bytes"] += 2 * len(sites) * model
        rows.append({"job": job, "round": round_} | spent)
    return rows


def _confusion(job: str, record: Record) -> list[dict[str, Any]]:
    labels, round_ = record.info.get("label_names", ()), record.info.get("confusion_of_round")
    return [
        {"job": job, "round": round_, "set": name, "label": label, "predicted": predicted, "examples": examples}
        for name, matrix in record.confusion.items()
        for label, row in zip(labels, matrix, strict=True)
        for predicted, examples in zip(labels, row, strict=True)
    ]


def _predictions(job: str, record: Record) -> list[dict[str, Any]]:
    if not record.predictions:
        return []
    return [{"job": job} | row for row in predictions_file.table(io.BytesIO(record.predictions)).to_pylist()]
