"""A network of machines: namespaces with their own interfaces and addresses, connected by a bridge."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import zygote
from tests.conftest import clean_environment
from tests.nodes.slow_link import SlowLink

PORT = 29500


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def unavailable() -> str:
    """The reason why networks can't be created here; empty if they can."""
    name = f"sf{os.getpid()}probe"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
    except FileNotFoundError:
        return "the command `ip` is missing (Debian: apt-get install iproute2)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces can't be created here: {error.stderr.strip()}"
    return ""


class Machine:
    """A machine; number N has the address 10.77.0.(N + 1)."""

    def __init__(self, number: int, switch: str, folder: Path):
        self.number, self.address = number, f"10.77.0.{number + 1}"
        self.namespace, self._switch, self._port = f"sf{os.getpid()}m{number}", switch, f"port{number}"
        self.folder = folder / f"machine{number}"
        self.folder.mkdir()
        # Short, because the paths of sockets are limited.
        self._tmpdir = tempfile.mkdtemp(prefix=f"sf{os.getpid()}-", dir="/tmp")
        _ip("netns", "add", self.namespace)
        self._slow_link: SlowLink | None = None
        _ip("-n", switch, "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace)
        self._connect()

    def _connect(self) -> None:
        _ip("-n", self._switch, "link", "set", self._port, "master", "bridge", "up")
        for words in (
            ["addr", "add", f"{self.address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"], ["link", "set", "lo", "up"]
        ):  # fmt: skip
            _ip("-n", self.namespace, *words)

    def start(
        self, *arguments: str, count: int, rank: int | None = None, cold: bool = False, **environ: str
    ) -> "subprocess.Popen[str]":
        """Start the command as node `rank` (default: this machine's number) of `count`."""
        defaults = {
            "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(PORT), "WORLD_SIZE": str(count),
            "RANK": str(self.number if rank is None else rank), "TMPDIR": self._tmpdir, "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        return zygote.popen(
            "with", *arguments, cold=cold, network=self.namespace,
            cwd=self.folder, env=clean_environment() | defaults | environ, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def cut(self, up: bool = False) -> None:
        """Disconnect the machine from the network, or reconnect it."""
        _ip("-n", self._switch, "link", "set", self._port, "up" if up else "down")

    def move_away(self, seconds: float) -> None:
        """Add latency between this machine and the others, in each direction."""
        ends = f"{self.namespace}a", f"{self.namespace}b"
        self._slow_link = SlowLink(ends, seconds)
        _ip("-n", self._switch, "link", "del", self._port)
        for end, namespace, name in ((ends[0], self.namespace, "eth0"), (ends[1], self._switch, self._port)):
            _ip("link", "set", end, "netns", namespace, "name", name)
        self._connect()

    def limit_traffic(self, *qdisc: str) -> None:
        """Limit the machine's outgoing traffic with a queueing discipline of `tc`."""
        words = ["tc", "-n", self.namespace, "qdisc", "replace", "dev", "eth0", "root", *qdisc]
        subprocess.run(words, check=True, capture_output=True)

    def sent(self) -> int:
        """Bytes sent so far."""
        found: list[dict[str, Any]] = json.loads(_ip("-n", self.namespace, "-s", "-j", "link", "show", "eth0"))
        return int(found[0]["stats64"]["tx"]["bytes"])

    def close(self) -> None:
        for pid in _ip("netns", "pids", self.namespace).split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if self._slow_link is not None:
            self._slow_link.close()
        _ip("netns", "del", self.namespace)
        shutil.rmtree(self._tmpdir, ignore_errors=True)


@contextlib.contextmanager
def network(count: int, folder: Path) -> Iterator[list[Machine]]:
    """Create `count` machines; remove them, with all their processes, at the end."""
    switch = f"sf{os.getpid()}switch"  # a namespace, so that this machine's firewall doesn't filter the bridge
    _ip("netns", "add", switch)
    machines: list[Machine] = []
    try:
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number in range(count):
            machines.append(Machine(number, switch, folder))
        yield machines
    finally:
        for machine in machines:
            machine.close()
        _ip("netns", "del", switch)
