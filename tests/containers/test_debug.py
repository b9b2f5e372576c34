"""A debugger attaches to the launcher in a container and to each of its child processes, as editors do."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, free_port
from tests.containers.conftest import docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900), pytest.mark.usefixtures("image")]

SITE = "scaling_fl/federated/site.py"
# The breakpoint is below this line.
LINE = next(number for number, line in enumerate((ROOT / SITE).read_text().splitlines(), 1) if "def train(" in line)
FILES = "docker-compose.yaml:docker-compose.debug.yaml"
WORDS = [
    "with",
    "demo",
    "site_ids=[0,0]",
    "num_rounds=1",
    "max_train_examples=64",
    "max_test_examples=32",
    "stall_timeout=5",
]


class Client(threading.Thread):
    """A session of the debug adapter protocol. It sets the breakpoint; processes stop there until `resume`."""

    def __init__(self, debugger: "Debugger", attach: dict[str, Any]):
        super().__init__(daemon=True)
        self._debugger, self._attach, self._number = debugger, attach, 0
        self._socket = socket.create_connection(("127.0.0.1", debugger.port), timeout=300)
        self._stream = self._socket.makefile("rb")
        self._turn = threading.Lock()

    def send(self, command: str, **arguments: Any) -> None:
        with self._turn:
            self._number += 1
            message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
            body = json.dumps(message).encode()
            self._socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def run(self) -> None:
        self.send("initialize", adapterID="python", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        for message in self._messages():
            match message.get("command") or message.get("event"):
                case "initialize":
                    self.send("attach", **self._attach)
                case "initialized":
                    place = {"path": str(self._debugger.root / SITE)}
                    self.send("setBreakpoints", source=place, breakpoints=[{"line": self._debugger.line}])
                    self.send("configurationDone")
                case "debugpyAttach":
                    self._debugger.attach(message["body"])
                case "stopped":
                    self._debugger.stopped.append((self, message["body"]["threadId"]))
                    self.send("stackTrace", threadId=message["body"]["threadId"], levels=1)
                case "stackTrace":
                    (frame,) = message["body"]["stackFrames"]
                    self._debugger.frames.append((frame["name"], frame["source"]["path"], frame["line"]))

    def _messages(self) -> Iterator[dict[str, Any]]:
        while header := self._stream.readline():
            length = int(header.split(b":")[1])
            self._stream.readline()
            yield json.loads(self._stream.read(length))


class Debugger:
    """An editor's debugger: a session for the first process, and one for each child process that it announces."""

    def __init__(self, port: int, root: Path):
        self.port, self.root = port, root
        text = (root / SITE).read_text().splitlines()
        self.line = next(n for n in range(LINE + 1, len(text)) if text[n - 1].strip().startswith("model"))
        self.clients: list[Client] = []
        self.stopped: list[tuple[Client, int]] = []
        self.frames: list[tuple[str, str, int]] = []

    def attach(self, announced: dict[str, Any]) -> None:
        mappings = [{"localRoot": str(self.root), "remoteRoot": "/opt/scaling_fl"}]
        client = Client(self, announced | {"pathMappings": mappings, "justMyCode": True})
        self.clients.append(client)
        client.start()

    def resume(self) -> None:
        while self.stopped:
            client, thread = self.stopped.pop()
            client.send("continue", threadId=thread)


@pytest.fixture
def job(copy: Path, tmp_path: Path, environ: dict[str, str]) -> Iterator["tuple[subprocess.Popen[str], int]"]:
    port = free_port()
    process = subprocess.Popen(
        [str(copy / "run-local.sh"), "scripts/train_federated.py", *WORDS], cwd=tmp_path,
        env=environ | {"COMPOSE_FILE": FILES, "DEBUG_PORT": str(port)}, stdin=subprocess.DEVNULL,
        stdout=(tmp_path / "output").open("w"), stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while "waiting for a debugger at 127.0.0.1:5678" not in (tmp_path / "output").read_text():
        assert process.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process, port
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    process.wait(timeout=300)
    assert docker("ps", "-aq", "--filter", "name=scaling_fl-").stdout == ""


def attached(port: int, root: Path) -> Debugger:
    debugger = Debugger(port, root)
    deadline = time.monotonic() + 60
    while True:  # until the debugger listens, the engine accepts connections and drops them
        debugger.attach({"connect": {"host": "127.0.0.1", "port": port}})
        time.sleep(1)
        if debugger.clients[-1].is_alive():
            return debugger
        assert time.monotonic() < deadline


def test_a_job_stops_at_a_breakpoint_in_a_site_and_resumes(
    job: "tuple[subprocess.Popen[str], int]", copy: Path, tmp_path: Path
) -> None:
    """One site is stopped for longer than stall_timeout while the other waits for it."""
    process, port = job
    assert (
        docker("ps", "--format", "{{.Ports}}", "--filter", "name=scaling_fl-").stdout == f"127.0.0.1:{port}->5678/tcp\n"
    )
    time.sleep(2)
    assert not (tmp_path / "runs").exists(), "nothing runs before the debugger is attached"
    debugger = attached(port, copy)
    deadline = time.monotonic() + 300
    while len(debugger.frames) < 2:
        assert process.poll() is None, (tmp_path / "output").read_text()
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.1)
    assert debugger.frames == [("train", str(copy / SITE), debugger.line)] * 2, (
        "one frame for each site, with the editor's paths"
    )
    held = debugger.stopped.pop()
    debugger.resume()
    time.sleep(12)
    assert process.poll() is None, (tmp_path / "output").read_text()
    debugger.stopped.append(held)
    debugger.resume()
    assert process.wait(timeout=300) == 0, (tmp_path / "output").read_text()
    assert re.search(r"\n +1  \d\.\d{4} ", (tmp_path / "output").read_text())


def test_a_job_survives_a_debugger_that_disconnects(
    job: "tuple[subprocess.Popen[str], int]", copy: Path, tmp_path: Path
) -> None:
    process, port = job
    debugger = attached(port, copy)
    deadline = time.monotonic() + 300
    while not debugger.frames:
        assert time.monotonic() < deadline, (tmp_path / "output").read_text()
        time.sleep(0.1)
    for client in debugger.clients:
        with contextlib.suppress(OSError):  # its process has ended
            client.send("disconnect", terminateDebuggee=False)
    assert process.wait(timeout=300) == 0, (tmp_path / "output").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_job_that_waits_for_a_debugger_can_be_stopped(job: "tuple[subprocess.Popen[str], int]", number: int) -> None:
    process, _ = job
    process.send_signal(number)
    assert process.wait(timeout=300) != 0


def test_a_container_without_the_debug_file_opens_no_port(copy: Path, tmp_path: Path, environ: dict[str, str]) -> None:
    script = "import os; print(os.environ.get('SCALING_FL_DEBUG'))"
    done = subprocess.run(
        [str(copy / "run-local.sh"), "-c", script],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "None\n", done.stderr
