"""Downloads from a server that implements the part of the hub's protocol that `datasets` uses."""

import hashlib
import io
import json
import posixpath
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.data.tasks.topics import TEST, TRAIN

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The data set lab/news, with a Parquet file for each split."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        tree, resolve = f"/api/datasets/lab/news/tree/{COMMIT}", "/datasets/lab/news/resolve/"
        if path in ("/api/datasets/lab/news", f"/api/datasets/lab/news/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "lab/news", "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})
        elif path.startswith(tree):
            folder = path.removeprefix(tree).strip("/")
            items = [{"type": "directory", "path": "data", "oid": "0"}] * (folder == "")
            for name, content in self.files.items():
                if posixpath.dirname(name) == folder:
                    oid = hashlib.sha1(content).hexdigest()
                    items.append({"type": "file", "path": name, "size": len(content), "oid": oid})  # type: ignore[dict-item]
            self.answer(items)
        else:
            self.answer(self.files.get(path.removeprefix(resolve).partition("/")[2]))

    do_HEAD = do_GET

    def answer(self, content: Any) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content or {"error": "not found"}).encode()
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/lab/news" in self.path else "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.files = {"README.md": b"---\nlicense: mit\n---\n"}
    for name, columns in (("train", TRAIN), ("test", TEST)):
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
        Hub.files[f"data/{name}-00000-of-00001.parquet"] = buffer.getvalue()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.timeout(3600)  # it imports the library anew in each of several processes
def test_a_data_set_is_downloaded_from_the_hub_once_and_then_works_offline(
    hub: ThreadingHTTPServer, command: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    environ = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "home")}

    def show(name: str, **more: str) -> "subprocess.CompletedProcess[str]":
        words = [f"dataset={name}", "text_column=body", "label_column=topic", "model=tiny"]
        return command("show_task", "with", "task_name=hub", *words, **environ, **more)

    first = show("lab/news")
    assert first.returncode == 0, first.stderr
    assert "task hub: 5 training and 2 test rows" in first.stdout
    missing = show("lab/other")
    assert "dataset=lab/other: the hub has no dataset lab/other that you can access" in missing.stderr
    hub.shutdown()
    hub.server_close()
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        again = show("lab/news", **more)
        assert again.returncode == 0, again.stderr
        assert "task hub: 5 training and 2 test rows" in again.stdout
    lost = show("lab/other")
    assert lost.returncode == 1
    assert "dataset=lab/other: it is not on this machine, and the hub can't be reached (ConnectError)" in lost.stderr
