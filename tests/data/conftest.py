"""A web server with one file, whose connections a test can break or stall."""

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

CONTENT = random.Random(0).randbytes(30_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves CONTENT. `requests` records the first byte of each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[int] = []
        self.content = CONTENT
        self.cuts: list[int] = []  # the next connections break after this many bytes each
        self.ranges = True
        self.pause = 0.0
        self.before_body: Callable[[], object] = lambda: None  # called before the body of an answer is sent
        self.url = f"http://127.0.0.1:{self.server_port}/data/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        requested = self.headers.get("Range")
        assert self.headers["Accept-Encoding"] == "identity"
        start = int(requested.removeprefix("bytes=").rstrip("-")) if requested and server.ranges else 0
        server.requests.append(start)
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        time.sleep(server.pause)
        server.before_body()
        end = start + server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start:end])

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
