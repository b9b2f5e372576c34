"""Omniboard, a viewer of Sacred's entries: the program itself, and the queries of its server."""

import contextlib
import datetime
import io
import json
import shutil
import socket
import socketserver
import subprocess
import threading
import time
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gridfs
import pytest

from tests.conftest import free_port, serve

VERSION = "2.16.1"


@contextmanager
def proxy(server: str) -> Iterator[int]:
    """The port of a proxy that rewrites the server's greeting to accept clients of any age.

    Omniboard's client dates from 2020. Current servers refuse its version, though they support all that it sends.
    """
    name, (host, _, port) = b"minWireVersion\0", server.partition(":")

    def copy(source: socket.socket, target: socket.socket, rewrite: bool = False) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                at = data.find(name)
                if rewrite and at > 0 and data[at - 1] == 0x10:  # a 32-bit integer
                    data = data[: at + len(name)] + bytes(4) + data[at + len(name) + 4 :]
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(port))) as far:
                threading.Thread(target=copy, args=(self.request, far), daemon=True).start()
                copy(far, self.request, rewrite=True)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as listener:
        listener.daemon_threads = True
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        yield listener.server_address[1]
        listener.shutdown()


def install(folder: Path) -> Path:
    """Install the program into `folder`; skip the test if that fails."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("this machine has no Node.js or no npm")
    npm = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", f"omniboard@{VERSION}"]
    done = subprocess.run(npm, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm can't install omniboard: {done.stderr.strip()[-300:]}")
    return folder / "node_modules" / "omniboard" / "dist" / "start.js"


class Omniboard:
    """A running Omniboard, queried over HTTP as its pages do."""

    def __init__(self, port: int):
        self._url = f"http://127.0.0.1:{port}/sacred/api/v1/"

    def _get(self, path: str, **query: Any) -> bytes:
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
            content: bytes = answer.read()
            return content

    def wait(self) -> None:
        """Wait until it has connected to its database."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.count()
                return
            except OSError:  # includes HTTP errors
                assert time.monotonic() < deadline, "it did not connect to its database"
                time.sleep(0.2)

    def count(self) -> int:
        return int(json.loads(self._get("Runs/count"))["count"])

    def table(self, select: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self._get("Runs", select=select, sort_by="_id", order_by="-1"))
        return found

    def run(self, number: int, select: str) -> Any:
        return json.loads(self._get(f"Runs/{number}", select=select))

    def metrics(self, number: int) -> Any:
        return json.loads(self._get("Metrics", query=json.dumps({"run_id": str(number)})))

    def metric_names(self) -> Any:
        return json.loads(self._get("Metrics", distinct="name"))

    def files(self, number: int, kind: str) -> Any:
        return json.loads(self._get(f"files/{kind}/{number}"))

    def download(self, number: int, kind: str) -> dict[str, bytes]:
        kind = "source_files" if kind == "source" else kind
        with zipfile.ZipFile(io.BytesIO(self._get(f"files/downloadAll/{number}/{kind}"))) as archive:
            return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


class Queries:
    """The queries of its server (dist/app.js, dist/runs.response.js), by another client."""

    def __init__(self, database: Any):
        self._database = database

    def count(self) -> int:
        return int(self._database.runs.estimated_document_count())

    def table(self, select: str) -> list[dict[str, Any]]:
        return self._runs(select, [], [{"$sort": {"_id": -1}}, {"$limit": 200}])

    def run(self, number: int, select: str) -> Any:
        return self._runs(select, [{"$match": {"_id": number}}], [{"$limit": 200}])[0]

    def _runs(self, select: str, first: list[Any], last: list[Any]) -> list[dict[str, Any]]:
        columns = select.split(",")
        added: dict[str, Any] = {}
        if "duration" in columns:
            added["duration"] = {"$subtract": ["$heartbeat", "$start_time"]}
        if "status" in columns:
            silent = {"$subtract": [datetime.datetime.now(datetime.UTC), {"$ifNull": ["$heartbeat", "$start_time"]}]}
            dead = {"$and": [{"$eq": ["$status", "RUNNING"]}, {"$gt": [silent, 120_000]}]}
            added["status"] = {"$cond": {"if": dead, "then": "PROBABLY_DEAD", "else": "$status"}}
        projection = dict.fromkeys([*columns, *(("start_time", "heartbeat") if added else ())], 1)
        pipeline = [*first, {"$project": projection}, *([{"$addFields": added}] if added else []), *last]
        return list(self._database.runs.aggregate(pipeline))

    def metrics(self, number: int) -> Any:
        return list(self._database.metrics.find({"run_id": number}))

    def metric_names(self) -> Any:
        return self._database.metrics.distinct("name")

    def files(self, number: int, kind: str) -> Any:
        ids = [file_id for _, file_id in self._listed(number, kind)]
        return list(self._database["fs.files"].find({"_id": {"$in": ids}}))

    def download(self, number: int, kind: str) -> dict[str, bytes]:
        files = gridfs.GridFS(self._database)
        return {name: files.get(file_id).read() for name, file_id in self._listed(number, kind)}

    def _listed(self, number: int, kind: str) -> list[tuple[str, Any]]:
        run = self._database.runs.find_one({"_id": number})
        if kind == "source":
            return [(name, file_id) for name, file_id in run["experiment"]["sources"]]
        return [(artifact["name"], artifact["file_id"]) for artifact in run["artifacts"]]


@contextmanager
def running(start: Path, server: str, database: str) -> Iterator[Omniboard]:
    port = free_port()
    with (
        proxy(server) as proxy_port,
        serve(port, "env", f"PORT={port}", "node", str(start), "-m", f"127.0.0.1:{proxy_port}:{database}"),
    ):
        viewer = Omniboard(port)
        viewer.wait()
        yield viewer
