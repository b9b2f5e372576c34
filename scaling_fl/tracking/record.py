"""A run as Sacred's viewers know it, derived from a job's events, including resumes, repeated rounds and crashes."""

import base64
import csv
import datetime
import io
import json
import math
from collections.abc import Iterable
from typing import Any

from scaling_fl.federated.metrics import per_class
from scaling_fl.progress import Event

PREDICTIONS, GENERATIONS = "predictions.parquet", "generations.json"  # artifacts
OWN_TESTS = ("site_test", "personal")  # kinds of metrics on each site's own test rows
# Of a long output the entry holds only both ends, to stay far below MongoDB's 16 MB for a document.
OUTPUT_END = 2**17  # characters at each end
MAX_SHARD_ROWS = 1000  # of the shard table in `info`; shards.csv has all rows
_STATUS = {"completed": "COMPLETED", "failed": "FAILED", "interrupted": "INTERRUPTED", "died": "FAILED"}
_LESS_IS_BETTER = ("loss", "perplexity", "bits_per_byte")
_DIED = "the launcher ended without recording why: it was killed, or its machine was lost\n"


class Record:
    """The state of a run after the events applied so far."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}
        self.info: dict[str, Any] = {"starts": [], "files": {}}
        self.entry: dict[str, Any] = {"status": "RUNNING", "resources": [], "result": None, "fail_trace": None}
        self.metrics: dict[str, dict[int, tuple[float, float]]] = {}  # name -> round -> (value, time)
        self.shards: list[dict[str, Any]] = []
        self.confusion: dict[str, list[list[int]]] = {}  # by set: [true label][predicted label], of the last evaluation
        self.predictions = b""  # for the test set, by the model of the last round: see predictions_file.py
        self.generations: list[
            dict[str, Any]
        ] = []  # row, prompt, expected, generated: by a language model of the last round
        self.attached: dict[str, bytes] = {}  # further artifacts, which aren't made from events alone
        self.sources: dict[str, str] = {}  # source files: name -> text
        self.output_length, self._head, self._tail = 0, "", ""

    @classmethod
    def from_events(cls, events: Iterable[Event]) -> "Record":
        """The record of a whole event file."""
        record = cls()
        for event in events:
            record.apply(event)
        return record

    @classmethod
    def from_parts(
        cls,
        config: dict[str, Any],
        info: dict[str, Any],
        entry: dict[str, Any],
        metrics: dict[str, dict[str, Any]],
        artifacts: dict[str, bytes],
    ) -> "Record":
        """The record that a target holds, without sources: the inverse of `points` and `artifacts`.

        `artifacts`: those that `is_part` names, and the output as cout.txt.
        Raises `KeyError`, `ValueError` or `TypeError` if it isn't a record of this program.
        """
        record = cls()
        record.config, record.info, record.entry = config, record.info | info, record.entry | entry
        for name, points in metrics.items():
            values = zip(map(float, points["values"]), map(_seconds, points["timestamps"]), strict=True)
            record.metrics[name] = dict(zip(map(int, points["steps"]), values, strict=True))
        labels = info.get("label_names", [])
        for file, content in artifacts.items():
            if file == PREDICTIONS:
                record.predictions = content
                continue
            if file == GENERATIONS:
                record.generations = json.loads(content)
                continue
            if file == "cout.txt":
                record._append_output(content.decode(errors="replace"))
                continue
            rows = list(csv.DictReader(io.StringIO(content.decode())))
            if file == "shards.csv":
                record.shards = [_without_labels(row, labels) for row in rows]
            elif file.endswith("_confusion.csv"):
                record.confusion[file.removesuffix("_confusion.csv")] = [
                    [int(row[to]) for to in labels] for row in rows
                ]
        return record

    def apply(self, event: Event) -> None:
        """Apply one event. Unknown kinds are ignored."""
        kind, time = event["event"], event["time"]
        self.entry["heartbeat"], self.info["last_event"] = utc(time), time
        match kind:
            case "created":
                self.info |= {"job_name": event["job_name"], "job_id": event["job_id"]}
            case "started":
                self.config, after = event["config"], event["start"]["after_round"]
                # Rounds after the checkpoint are run again.
                valid = {name: {n: p for n, p in points.items() if n <= after} for name, points in self.metrics.items()}
                self.metrics = {name: points for name, points in valid.items() if points and after > 0}
                self.entry.setdefault("start_time", utc(time))
                self.entry |= event["sacred"] | {"status": "RUNNING", "stop_time": None, "fail_trace": None}
                self.info |= event["info"]
                self.info["starts"].append({"time": utc(time).isoformat()} | event["start"])
            case "source":
                self.sources[event["name"]] = event["text"]
            case "shards":
                self.shards = event["shards"]
                self.info["shards"] = [
                    {
                        name: value for name, value in row.items() if name != "label_counts"
                    }  # a document has 16 MB at most
                    for row in self.shards[:MAX_SHARD_ROWS]
                ]
            case "round":
                for name, value in event["metrics"].items():  # a repeated round replaces its values
                    self.metrics.setdefault(name, {})[event["round"]] = (float(value), time)
                self.entry["result"] = self.result()
            case "confusion":
                self.confusion = event["sets"]
                self.info["confusion_of_round"] = event["round"]
            case "predictions":
                self.predictions = base64.b64decode(event["parquet"])
            case "generations":
                self.generations = event["rows"]
            case "checkpoint":
                self.metrics.setdefault("seconds.checkpoint", {})[event["round"]] = (event["seconds"], time)
                self.info["files"]["checkpoint"] = event["path"]
            case "model":
                name = "best model" if event["path"].endswith("/model-best") else "model"
                self.info["files"][name] = event["path"]
            case "output":
                self._append_output(event["text"] + "\n")
            case "restarted":
                restarts = self.info["starts"][-1].setdefault("restarts", [])
                restarts.append({"time": utc(time).isoformat(), "reason": event["reason"]})
            case "completed" | "failed" | "interrupted" | "died":
                self.entry |= {"status": _STATUS[kind], "stop_time": utc(event.get("at") or time)}
                self.entry["fail_trace"] = [_DIED] if kind == "died" else event.get("trace")
                self.info["starts"][-1]["end"] = kind

    def _append_output(self, text: str) -> None:
        self.output_length += len(text)
        space = OUTPUT_END - len(self._head)
        self._head, text = self._head + text[:space], text[space:]
        self._tail = (self._tail + text)[-OUTPUT_END:]

    @property
    def output(self) -> str:
        """The captured output; a long one without its middle."""
        omitted = self.output_length - len(self._head) - len(self._tail)
        gap = f"\n… {omitted:,} characters omitted; cout.txt has the full output …\n" if omitted else ""
        return self._head + gap + self._tail

    def points(self, name: str) -> dict[str, list[Any]]:
        """A metric in Sacred's format, in order of rounds."""
        points = sorted(self.metrics[name].items())
        return {
            "steps": [step for step, _ in points],
            "values": [value for _, (value, _) in points],
            "timestamps": [utc(time) for _, (_, time) in points],
        }

    def result(self) -> dict[str, Any]:
        """The last and the best value of each metric of a whole model, and its best round.

        Of single sites' metrics, only those on their own test rows have a place here, summed up over the sites.
        """
        result: dict[str, Any] = {
            "round": max((step for points in self.metrics.values() for step in points), default=0)
        }
        for name, points in self.metrics.items():
            kind, _, measure = name.partition(".")
            if kind not in ("train", "validation", "held_back", *OWN_TESTS) or measure in ("examples", "tokens"):
                continue
            if "." in measure and kind not in OWN_TESTS:
                continue
            last = points[max(points)][0]
            values = {step: value for step, (value, _) in points.items() if math.isfinite(value)}
            of_metric: dict[str, Any] = {"last": last if math.isfinite(last) else str(last)}
            if values:
                best = (min if measure in _LESS_IS_BETTER or measure.startswith("std_site") else max)(
                    sorted(values), key=values.__getitem__
                )
                of_metric |= {"best": values[best], "best_round": best}
            result.setdefault(kind, {})[measure] = of_metric
        return result

    def artifacts(self) -> dict[str, bytes]:
        """The files attached to the run: shards, metrics by round, and the last evaluation by class."""
        rounds = sorted({step for points in self.metrics.values() for step in points})
        table = [
            {"round": step} | {name: points[step][0] for name, points in self.metrics.items() if step in points}
            for step in rounds
        ]
        files = {"shards.csv": _csv([self._with_labels(row) for row in self.shards]), "metrics.csv": _csv(table)}
        for name, confusion in self.confusion.items():
            labels = self.info["label_names"]
            rows = [
                {"true label": label} | dict(zip(labels, row, strict=True))
                for label, row in zip(labels, confusion, strict=True)
            ]
            files[f"{name}_confusion.csv"] = _csv(rows)
            files[f"{name}_per_class.csv"] = _csv(per_class(labels, confusion))
        if self.predictions:
            files[PREDICTIONS] = self.predictions
        if self.generations:
            files[GENERATIONS] = json.dumps(self.generations, indent=1, ensure_ascii=False).encode()
        return files | self.attached

    def _with_labels(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of the shard table with a column for each label's number of examples."""
        counts = zip(self.info.get("label_names", ()), row.get("label_counts", ()), strict=False)
        plain = {name: value for name, value in row.items() if name != "label_counts"}
        return plain | {f"label {label}": count for label, count in counts}


def is_part(artifact: str) -> bool:
    """Whether `Record.from_parts` reads this artifact."""
    return artifact in ("shards.csv", PREDICTIONS, GENERATIONS) or artifact.endswith("_confusion.csv")


def _without_labels(row: dict[str, str], labels: list[str]) -> dict[str, Any]:
    """A row of the shard table, of its row in shards.csv."""
    counts = [int(row.pop(f"label {label}")) for label in labels if f"label {label}" in row]
    shard: dict[str, Any] = {"site": int(row["site"]), "examples": int(row["examples"])}
    if "label_entropy_bits" in row:
        shard["label_entropy_bits"] = float(row["label_entropy_bits"])
    return row | shard | ({"label_counts": counts} if counts else {})


def _seconds(time: datetime.datetime | str) -> float:
    """The inverse of `utc`, for times that JSON holds as text."""
    parsed = datetime.datetime.fromisoformat(time) if isinstance(time, str) else time
    return parsed.replace(tzinfo=datetime.UTC).timestamp()


def utc(time: float) -> datetime.datetime:
    """Convert seconds since 1970 to Sacred's format: UTC, but without a time zone."""
    return datetime.datetime.fromtimestamp(time, datetime.UTC).replace(tzinfo=None)


def _csv(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    names = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
