"""What a page says of one job in words and tables: headline figures, shards, mistakes, keys, environment, notes."""

import datetime
import math
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from scaling_fl.config.key_help import as_command_line
from scaling_fl.config.schema import Config
from scaling_fl.reporting import outcomes
from scaling_fl.reporting.frames import Frames
from scaling_fl.tracking.record import Record

_SHOWN_MISTAKES = 100
_SHOWN_LABELS = 12  # in the table of shards
_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "scaling-fl")


class Figure(NamedTuple):
    name: str
    value: str
    note: str = ""


class Table(NamedTuple):
    columns: list[str]
    rows: list[list[Any]]


class Facts(NamedTuple):
    """Of one job; all values are text, but for cells of tables."""

    name: str
    status: str
    summary: str
    figures: list[Figure]
    shards: Table
    rounds: Table
    mistakes: list[dict[str, Any]]  # label, predicted, probability, text, maybe text_pair; the most confident first
    num_mistakes: int
    generations: list[dict[str, Any]]  # row, prompt, expected, generated
    changed: list[tuple[str, str, str]]  # key, value, default
    keys: list[tuple[str, str]]  # all of them
    environment: list[tuple[str, str]]
    notes: list[str]
    failure: str
    command: str


def of_job(record: Record, frames: Frames) -> Facts:
    """The facts of the job whose record is `record`; `frames` are of this job alone."""
    keys = record.config | record.info.get("resolved", {})
    defaults = Config().to_mapping()
    changed = {key: value for key, value in record.config.items() if value != defaults.get(key)}
    changed_keys = [
        (k, as_text(v), as_text(defaults[k])) for k, v in changed.items() if k != "job_name" and k in defaults
    ]
    wrong = frames.predictions[frames.predictions["label"] != frames.predictions["predicted"]]
    with_text = wrong[wrong["text"].notna()].head(_SHOWN_MISTAKES)
    trace = record.entry.get("fail_trace") or [""]
    return Facts(
        name=str(frames.runs["job"].iloc[0]),
        status=str(record.entry["status"]),
        summary=_summary(keys, record.result()["round"]),
        figures=list(_figures(record, frames, keys)),
        shards=_shards(frames),
        rounds=_rounds(frames),
        mistakes=with_text.dropna(axis="columns", how="all").to_dict("records"),
        num_mistakes=len(wrong),
        generations=record.generations,
        changed=changed_keys,
        keys=[(key, as_text(value)) for key, value in keys.items()],
        environment=list(_environment(record)),
        notes=_notes(record.output),
        failure=str(trace[-1]).strip(),
        command=_command(changed),
    )


def as_text(value: object) -> str:
    return as_command_line(value)


def _summary(keys: dict[str, Any], round_: int) -> str:
    sites = keys.get("num_sites") or len(keys.get("site_ids", ()))
    steps, drawn = keys.get("num_local_steps"), keys.get("local_epochs_range")
    length, unit = (keys.get("num_local_epochs", 1), "epoch") if steps is None else (steps, "step")
    if drawn is not None:
        length = f"{drawn[0]} to {drawn[1]}"
    method = keys.get("baseline") or f"{length} local {unit}{'s' if length != 1 else ''} a round"
    return (
        f"{keys.get('model')} on {keys.get('task_name')}, {sites} sites, {keys.get('partition') or 'iid'} partition, "
        f"{method}; round {round_} of {keys.get('num_rounds')}"
    )


def _figures(record: Record, frames: Frames, keys: dict[str, Any]) -> Iterator[Figure]:
    result = record.result()
    labels = len(record.info.get("label_names", ()))
    rows = frames.confusion[frames.confusion["set"] == "validation"].groupby("label", sort=False)["examples"].sum()
    majority = f"most frequent label: {rows.max() / rows.sum():.3f}" if len(rows) and rows.sum() else ""
    beside = {"accuracy": majority, "loss": f"chance: {math.log(labels):.3f}" if labels else ""}
    for metric, title in outcomes.titles(frames.runs).items():
        measure = metric.removeprefix("validation.")
        if of_metric := result.get("validation", {}).get(measure):
            best = f"best: {of_metric['best']:.4f}, round {of_metric['best_round']}" if "best" in of_metric else ""
            yield Figure(
                title, f"{float(of_metric['last']):.4f}", "; ".join(filter(None, (best, beside.get(measure, ""))))
            )
    yield from _of_sites(result)
    yield from _privacy(frames, keys)
    yield Figure("rounds", f"{result['round']}", f"of {keys.get('num_rounds')}")
    sizes = [int(shard["examples"]) for shard in record.shards]
    if sizes:
        per_round = keys.get("sites_per_round")
        cohort = f"{per_round} in each round; " if per_round not in (None, len(sizes)) else ""
        each = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{sizes[0]:,}"
        yield Figure("sites", f"{len(sizes)}", f"{cohort}{each} examples each")
    if len(frames.costs):
        spent = frames.costs.iloc[-1]
        yield Figure("training examples", f"{int(spent['examples']):,}", f"{int(spent['local_steps']):,} local steps")
        yield Figure("time", duration(float(spent["seconds"])), "training, aggregation and evaluation")
        if spent["bytes"] > 0:
            yield Figure("traffic", _bytes(float(spent["bytes"])), "to and from the sites")
    if parameters := record.info.get("num_parameters"):
        yield Figure("parameters", f"{parameters:,}", _bytes(parameters * 4.0))


def _of_sites(result: dict[str, Any]) -> Iterator[Figure]:
    """Accuracy on the sites' own test rows."""
    for kind, title in (("site_test", "accuracy on own test rows"), ("personal", "own models on own test rows")):
        if measures := result.get(kind):
            last = {name: float(of_metric["last"]) for name, of_metric in measures.items()}
            spread = f"± {last['std_site.accuracy']:.4f} over sites; worst {last['worst_site.accuracy']:.4f}"
            yield Figure(title, f"{last['mean_site.accuracy']:.4f}", spread)


def _privacy(frames: Frames, keys: dict[str, Any]) -> Iterator[Figure]:
    last = frames.rounds["round"].max()
    for name, by in (("dp.epsilon_pld", "PLD"), ("dp.epsilon_rdp", "RDP")):  # a large ε has no PLD
        values = frames.rounds[(frames.rounds["metric"] == name) & (frames.rounds["round"] == last)]
        if len(values):
            spent = values["value"].iloc[-1]
            nobody = "; dp_seed is set: it protects nobody" if keys.get("dp_seed") is not None else ""
            yield Figure("privacy", f"ε = {spent:.3g}", f"at δ = {keys.get('dp_delta'):g}, by {by}{nobody}")
            return


def _shards(frames: Frames) -> Table:
    """A row for each site: its examples by label, and its training metrics in its last round."""
    values = frames.sites
    if values.empty:
        return Table([], [])
    last = values.sort_values("round", kind="stable").groupby(["site", "metric"], sort=False)["value"].last().unstack()
    names = {name: name.removeprefix("shard.label.") for name in last.columns if name.startswith("shard.label.")}
    if len(names) > _SHOWN_LABELS:
        names = {}
    titles = {
        "shard.examples": "examples", "shard.label_entropy_bits": "label entropy (bits)", **names,
        "shard.attack": "attacks", "site_test.accuracy": "accuracy on own test rows",
        "personal.accuracy": "own model there", "train.loss": "training loss", "train.accuracy": "training accuracy",
    }  # fmt: skip
    shown = [name for name in titles if name in last.columns]
    counts = {"shard.examples", "shard.attack", *names}
    rows = [
        [int(site), *(as_cell(row[name], 0 if name in counts else 4) for name in shown)]
        for site, row in last.iterrows()
    ]
    return Table(["site", *(titles[name] for name in shown)], rows)


def _rounds(frames: Frames) -> Table:
    wide = frames.rounds.pivot_table(index="round", columns="metric", values="value", dropna=False)
    titles = {
        "train.loss": "training loss", "train.accuracy": "training accuracy", **outcomes.titles(wide.columns),
        "held_back.loss": "held-back loss", "held_back.accuracy": "held-back accuracy",
    }  # fmt: skip
    shown = [name for name in titles if name in wide.columns]
    rows = [[int(str(round_)), *(as_cell(row[name], 4) for name in shown)] for round_, row in wide.iterrows()]
    return Table(["round", *(titles[name] for name in shown)], rows)


def as_cell(value: float, digits: int = 4) -> str:
    return "–" if pd.isna(value) else f"{value:,.{digits}f}"


def _environment(record: Record) -> Iterator[tuple[str, str]]:
    host, info = record.entry.get("host", {}), record.info
    for name, key in (("host", "hostname"), ("system", "os"), ("CPU", "cpu")):
        if value := host.get(key):
            yield name, " ".join(value) if isinstance(value, list | tuple) else str(value)
    if gpus := host.get("gpus"):
        yield "GPUs", ", ".join(gpu.get("model", "?") for gpu in gpus.get("gpus", ()))
    last = info["starts"][-1]
    yield "devices", ", ".join(last.get("devices", ()))
    for name, value in last.get("environment", {}).items():
        yield name, str(value)
    packages = dict(
        line.split("==", 1) for line in record.entry.get("experiment", {}).get("dependencies", ()) if "==" in line
    )
    yield "packages", ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)
    for repository in record.entry.get("experiment", {}).get("repositories") or ():
        changes = ", with uncommitted changes" if repository.get("dirty") else ""
        yield "commit", f"{repository.get('commit')}{changes}"
    if digest := info.get("data_digest"):
        yield "data (SHA-256)", str(digest)
    for start in info["starts"]:
        after = f"after round {start['after_round']}" if start.get("after_round") else "from the beginning"
        yield "started", f"{start['time'][:19]} UTC on {start.get('host')}, {after}; {start.get('end', 'not ended')}"


def _notes(output: str) -> list[str]:
    """The notes of the run in its output, each once."""
    return list(dict.fromkeys(line.removeprefix("note: ") for line in output.splitlines() if line.startswith("note: ")))


def _command(changed: dict[str, Any]) -> str:
    words = [shlex.quote(f"{key}={as_text(value)}") for key, value in changed.items()]
    return " \\\n    ".join(["./run-local.sh scripts/train_federated.py with", *words])


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(datetime.timedelta(seconds=round(seconds)))


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
