"""MLflow's server: the program itself, in a virtual environment of its own, and a stand-in for its REST API."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests

from tests.conftest import free_port

REQUIREMENT = "mlflow==3.17.2"


class Reader:
    """Reads what a server has, over HTTP."""

    port: int

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        answer = requests.request(method, f"{self.uri}/api/2.0/mlflow/{path}", timeout=60, **options)
        answer.raise_for_status()
        return answer.json()

    def runs(self) -> list[dict[str, Any]]:
        """All runs of all experiments."""
        found = self._ask("POST", "experiments/search", json={"max_results": 100})["experiments"]
        ids = [one["experiment_id"] for one in found]
        runs: list[dict[str, Any]] = self._ask("POST", "runs/search", json={"experiment_ids": ids}).get("runs", [])
        return runs

    def run(self) -> dict[str, Any]:
        """The only run: its info, and its params and tags as mappings."""
        (run,) = self.runs()
        texts = {
            kind: {entry["key"]: entry["value"] for entry in run["data"].get(kind, [])} for kind in ("params", "tags")
        }
        found: dict[str, Any] = run["info"] | texts
        return found | {"metrics": {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])}}

    def history(self, metric: str) -> list[tuple[int, Any]]:
        """All values of a metric of the only run, as (step, value), in order of steps and times."""
        query = {"run_id": self.run()["run_id"], "metric_key": metric}
        points = self._ask("GET", "metrics/get-history", params=query).get("metrics", [])
        return [
            (int(p["step"]), p["value"]) for p in sorted(points, key=lambda p: (int(p["step"]), int(p["timestamp"])))
        ]

    def file(self, name: str) -> bytes:
        """An artifact of the only run."""
        folder = self.run()["artifact_uri"].removeprefix("mlflow-artifacts:/")
        answer = requests.get(f"{self.uri}/api/2.0/mlflow-artifacts/artifacts/{folder}/{name}", timeout=60)
        answer.raise_for_status()
        return answer.content


class Itself(Reader):
    """MLflow's server, with its data in `folder`. It can be killed, and started again."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.port, self._folder = programs, free_port(), folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self) -> None:
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONPATH": ""}
        words = ["server", "--port", str(self.port), "--workers", "1", "--artifacts-destination", "files"]
        self._process = subprocess.Popen(
            [str(self.programs / "mlflow"), *words, "--backend-store-uri", "sqlite:///mlflow.db"], cwd=self._folder,
            env=os.environ | quiet, stdout=(self._folder / "log").open("a"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 240
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{self.uri}/health", timeout=60).ok:
                    return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline, "the server doesn't answer"
            time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # with its workers
            self._process.wait()
            self._process = None


class StandIn(Reader):
    """A server with the part of the API that is used: its limits, its immutable params, its answers."""

    def __init__(self, artifact_root: str = "mlflow-artifacts:"):
        self.port, self.artifact_root = free_port(), artifact_root
        self.experiments: dict[str, str] = {}
        self.stored: dict[str, dict[str, Any]] = {}  # runs by id
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, Any]] = []  # path and fields
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                path, _, query = self.path.removeprefix("/api/2.0/").partition("?")
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if path.startswith("mlflow-artifacts/"):
                    name = urllib.parse.unquote(path)
                    if self.command == "PUT":
                        stand_in.files[name] = body
                    self._send(200, b"" if self.command == "PUT" else stand_in.files[name])
                    return
                fields = json.loads(body) if body else dict(urllib.parse.parse_qsl(query))
                stand_in.requests.append((path, fields))
                try:
                    answer = getattr(stand_in, "_" + path.removeprefix("mlflow/").replace("/", "_").replace("-", "_"))(
                        fields
                    )
                    self._send(200, json.dumps(answer).encode())
                except LookupError as error:
                    self._send(404, _error("RESOURCE_DOES_NOT_EXIST", error))
                except ValueError as error:
                    self._send(400, _error("INVALID_PARAMETER_VALUE", error))

            def _send(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _experiments_get_by_name(self, fields: Any) -> Any:
        return {"experiment": {"experiment_id": self.experiments[fields["experiment_name"]]}}

    def _experiments_create(self, fields: Any) -> Any:
        self.experiments[fields["name"]] = str(len(self.experiments) + 1)
        return {"experiment_id": self.experiments[fields["name"]]}

    def _experiments_search(self, fields: Any) -> Any:
        return {"experiments": [{"experiment_id": one} for one in self.experiments.values()]}

    def _runs_create(self, fields: Any) -> Any:
        run_id = uuid.uuid4().hex
        uri = f"{self.artifact_root}/{fields['experiment_id']}/{run_id}/artifacts"
        info = {"run_id": run_id, "status": "RUNNING", "artifact_uri": uri}
        info |= {key: fields[key] for key in ("experiment_id", "run_name", "start_time")}
        tags = {tag["key"]: tag["value"] for tag in fields["tags"]}
        self.stored[run_id] = {"info": info, "params": {}, "tags": tags, "metrics": set()}
        return {"run": self._shown(self.stored[run_id])}

    def _runs_search(self, fields: Any) -> Any:
        runs = [run for run in self.stored.values() if run["info"]["experiment_id"] in fields["experiment_ids"]]
        if "filter" in fields:
            name, _, value = fields["filter"].removeprefix("tags.").partition(" = ")
            runs = [run for run in runs if run["tags"].get(name.strip("`")) == value.strip("'")]
        return {"runs": [self._shown(run) for run in runs]} if runs else {}

    def _shown(self, run: dict[str, Any]) -> dict[str, Any]:
        data = {kind: [{"key": k, "value": v} for k, v in run[kind].items()] for kind in ("params", "tags")}
        last = {key: value for _, _, key, value in sorted(run["metrics"], key=lambda metric: metric[:2])}
        return {
            "info": dict(run["info"]),
            "data": data | {"metrics": [{"key": k, "value": v} for k, v in last.items()]},
        }

    def _runs_log_batch(self, fields: Any) -> Any:
        run = self.stored[fields["run_id"]]
        for kind, most in (("params", 100), ("tags", 100), ("metrics", 1000)):
            if len(fields.get(kind, ())) > most:
                raise ValueError(f"at most {most} {kind}")
        for param in fields.get("params", ()):
            if run["params"].setdefault(param["key"], param["value"]) != param["value"]:
                raise ValueError("Changing param values is not allowed")
        run["tags"] |= {tag["key"]: tag["value"] for tag in fields.get("tags", ())}
        for metric in fields.get("metrics", ()):
            value = float(metric["value"])  # an infinite one becomes the largest number
            value = math.copysign(sys.float_info.max, value) if math.isinf(value) else value
            shown = "NaN" if math.isnan(value) else value
            run["metrics"].add((metric["step"], metric["timestamp"], metric["key"], shown))
        return {}

    def _runs_update(self, fields: Any) -> Any:
        info = self.stored[fields["run_id"]]["info"]
        info |= {"status": fields["status"], "end_time": fields["end_time"]}
        if not info["end_time"]:
            del info["end_time"]
        return {"run_info": info}

    def _metrics_get_history(self, fields: Any) -> Any:
        found = [m for m in self.stored[fields["run_id"]]["metrics"] if m[2] == fields["metric_key"]]
        return {"metrics": [{"step": step, "timestamp": time_, "value": value} for step, time_, _, value in found]}


def _error(code: str, error: Exception) -> bytes:
    return json.dumps({"error_code": code, "message": str(error)}).encode()


Viewer = StandIn | Itself
