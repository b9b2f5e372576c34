"""A job and its resumes as one run of the MLflow server that MLFLOW_TRACKING_URI names: params, metrics, files, status.

MLflow has no call that removes a value. Where a resume runs a round again, the round has both values, the later one last.
"""

import urllib.parse
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.storage import Storage
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.mlflow_server import Server
from scaling_fl.tracking.record import Record

_MAX_ENTRIES = {"params": 100, "tags": 100, "metrics": 1000}  # in one request
_MAX_VALUE = 5000  # characters of a param or tag, with all versions of the server
_JOB, _LAST_EVENT = "scaling_fl.job_id", "scaling_fl.last_event"  # tags
_CHANGED = "changed."  # before the name of a key: a tag
_STATUS = {"RUNNING": "RUNNING", "COMPLETED": "FINISHED", "FAILED": "FAILED", "INTERRUPTED": "KILLED"}


class MlflowRun:
    """The run of a job, which is found again by a tag with the job's id."""

    throttled = True

    def __init__(self, server: Server, job_name: str):
        self.name, self.title = f"MLflow at {server.url.partition('://')[2]}", "MLflow"
        self._server, self._job_name = server, job_name
        self._experiment = self._job_id = ""
        self._info: dict[str, str] = {}  # the server's, on the run
        self._params: dict[str, str] = {}  # that the run has
        self._changed: set[str] = set()  # keys whose values have differed from the params

    def check(self) -> None:
        """Raises what `explain` explains if the server doesn't answer. Leaves no trace."""
        self._server.experiment_id()

    def open(self, job_id: str) -> float:
        self._job_id, self._info, self._params, self._changed = job_id, {}, {}, set()
        found = self._server.experiment_id()
        self._experiment = (
            found or self._server.post("experiments/create", name=self._server.experiment)["experiment_id"]
        )
        runs = self._server.post(
            "runs/search", experiment_ids=[self._experiment], filter=f"tags.`{_JOB}` = '{job_id}'", max_results=1
        ).get("runs")
        if not runs:
            return 0.0
        self._info, data = runs[0]["info"], runs[0]["data"]
        self._params = {param["key"]: param.get("value", "") for param in data.get("params", ())}
        tags = {tag["key"]: tag.get("value", "") for tag in data["tags"]}
        self._changed = {key.removeprefix(_CHANGED) for key in tags if key.startswith(_CHANGED)}
        return float(tags.get(_LAST_EVENT, 0.0))

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        if not events:
            return
        kinds, times = {event["event"] for event in events}, {event["time"] for event in events}
        if not self._info:
            self._create(record, events[0]["time"])
        if "started" in kinds:
            params = {key: _text(value) for key, value in record.config.items()}
            self._log("params", [{"key": k, "value": v} for k, v in params.items() if k not in self._params])
            self._params = params | self._params  # a run keeps its params for ever
        metrics = [
            {"key": name.replace(".", "/", 1), "value": _number(value), "timestamp": _ms(time), "step": number}
            for name, points in record.metrics.items()  # MLflow groups charts by what stands before the slash
            for number, (value, time) in points.items()
            if time in times
        ]
        self._log("metrics", metrics)
        if kinds & {"shards", *event_file.ENDS}:
            self._upload(record.artifacts() | {"cout.txt": record.output.encode()})
        status = _STATUS[record.entry["status"]]
        if kinds & {"started", *event_file.ENDS}:
            end = 0 if status == "RUNNING" else _ms(record.info["last_event"])  # 0: none, for a run that goes on
            self._server.post("runs/update", run_id=self._info["run_id"], status=status, end_time=end)
        tags = self._tags(record) if "started" in kinds else {}
        tags[_LAST_EVENT] = record.info["last_event"]
        self._log("tags", [{"key": key, "value": _text(value)} for key, value in tags.items() if value is not None])

    def location(self) -> str:
        if not self._info:
            return ""
        return f"{self._server.url}/#/experiments/{self._experiment}/runs/{self._info['run_id']}"

    def explain(self, error: Exception) -> str:
        return self._server.explain(error)

    def _create(self, record: Record, time: float) -> None:
        tags = {_JOB: self._job_id, "mlflow.note.content": record.entry.get("meta", {}).get("comment")}
        self._info = self._server.post(
            "runs/create", experiment_id=self._experiment, run_name=self._job_name,
            start_time=_ms(time),
            tags=[{"key": key, "value": _text(value)} for key, value in tags.items() if value],
        )["run"]["info"]  # fmt: skip

    def _tags(self, record: Record) -> dict[str, Any]:
        """What describes the last start, and the keys that have changed since the first."""
        experiment = record.entry["experiment"]
        commits = [one["commit"] + "-dirty" * bool(one["dirty"]) for one in experiment["repositories"]]
        tags = {
            "mlflow.user": record.config.get("author"),
            "mlflow.source.name": experiment["mainfile"],
            "mlflow.source.git.commit": next(iter(commits), None),
            "host": record.entry["host"].get("hostname"),
        }
        resolved = {f"resolved.{name}": value for name, value in record.info.get("resolved", {}).items()}
        self._changed |= {key for key, value in record.config.items() if _text(value) != self._params[key]}
        return tags | resolved | {f"{_CHANGED}{key}": record.config.get(key) for key in self._changed}

    def _log(self, kind: str, entries: list[dict[str, Any]]) -> None:
        size = _MAX_ENTRIES[kind]
        for first in range(0, len(entries), size):
            batch = {kind: entries[first : first + size]}
            self._server.post("runs/log-batch", run_id=self._info["run_id"], **batch)

    def _upload(self, files: dict[str, bytes]) -> None:
        root = self._info["artifact_uri"]
        if root.startswith("mlflow-artifacts:"):  # the server stores the files itself
            folder = urllib.parse.urlsplit(root).path.strip("/")
            for name, content in files.items():
                quoted = urllib.parse.quote(f"{folder}/{name}")
                self._server.call("PUT", f"mlflow-artifacts/artifacts/{quoted}", data=content)
        else:
            storage = Storage(root, "MLflow's artifacts")
            storage.fs.makedirs(storage.root, exist_ok=True)
            for name, content in files.items():
                storage.write(name, content)


def _text(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def _number(value: float) -> float | str:
    """In the JSON of protocol buffers: a number, or NaN, Infinity or -Infinity as text."""
    return value if abs(value) < float("inf") else str(value).replace("nan", "NaN").replace("inf", "Infinity")


def _ms(time: float) -> int:
    return round(time * 1000)
