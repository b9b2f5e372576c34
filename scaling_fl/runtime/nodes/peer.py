"""Another node's launcher, as seen from this node: its messages, and whether it is alive.

Nothing received over the connection is ever unpickled.
"""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from scaling_fl.errors import JobFailed, NodeLost, OutOfMemory, UserError
from scaling_fl.progress import Event
from scaling_fl.runtime import signals

HEARTBEAT_TIMEOUT = 10.0  # seconds without a heartbeat after which a node is lost
_FAILURES: dict[str, type[Exception]] = {"failed": JobFailed, "refused": UserError, "exhausted": OutOfMemory}
_MAX_MESSAGE_BYTES = 2**24  # bytes of a message


class Peer:
    """Another node's launcher, which this node watches like a child (`Child`)."""

    def __init__(self, connection: socket.socket, name: str):
        connection.settimeout(5.0)  # a peer that stops reading must not block this node
        self.name = name
        self.failure: Exception | None = None
        self.progress_at = self.heartbeat_at = time.monotonic()
        self.done, self.phase = 0, 0  # the last phase it finished, and this node's current phase
        self.attempt = 0  # counts the restarts of all nodes
        self.blocked = False  # whether all of its workers are blocked
        self.values: list[Any] = []
        self._socket, self._lock, self._buffer = connection, threading.Lock(), b""

    @property
    def ended(self) -> bool:
        """Whether it has finished its part of the current phase."""
        return self.done >= self.phase > 0

    def sources(self) -> list[Any]:
        """The objects to `wait` on."""
        return [self._socket]

    def send(self, kind: str, value: Any = None) -> None:
        """Send a message. A broken connection is noticed in `receive`."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps([kind, value]).encode() + b"\n")

    def is_disconnected(self) -> bool:
        """Whether it has closed the connection and nothing is left to read."""
        try:
            readable = select.select([self._socket], [], [], 0)[0]
            return bool(readable) and not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def receive(self, on_event: Callable[[Event], None]) -> None:
        """Handle everything that has arrived."""
        while select.select([self._socket], [], [], 0)[0]:
            try:
                data = self._socket.recv(2**16)
            except OSError:
                data = b""
            if not data or len(self._buffer) > _MAX_MESSAGE_BYTES:
                if not self.ended:
                    self.failure = self.failure or NodeLost(f"{self.name} is lost: its launcher closed the connection")
                return
            self.progress_at = time.monotonic()
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            for line in lines:
                try:
                    kind, value = json.loads(line)
                except (ValueError, TypeError):
                    self.failure = NodeLost(f"{self.name} is not a scaling_fl launcher: it sent {line[:40]!r}")
                    return
                self._handle(kind, value, on_event)

    def _handle(self, kind: str, value: Any, on_event: Callable[[Event], None]) -> None:
        match kind:
            case "alive":
                self.blocked = bool(value)
            case "value":
                self.values.append(value)
            case "done":
                self.done = value
            case "failed" | "refused" | "exhausted" if value[0] >= self.attempt:  # not from before this node's restart
                self.failure = self.failure or _FAILURES[kind](value[1])
            case "stop":
                signals.receive_remote(value)
            case "stopped":
                signals.receive_remote(value)
                on_event({"event": "stopped"})

    def is_hung(self, stall_timeout: float) -> bool:
        """Whether it has sent no heartbeat for too long."""
        return time.monotonic() - self.progress_at > HEARTBEAT_TIMEOUT

    def is_blocked(self, stall_timeout: float) -> bool:
        """Whether all of its workers are blocked."""
        return self.blocked

    def hang_failure(self, stall_timeout: float, on_event: Callable[[Event], None]) -> Exception:
        """The failure to report for a silent node."""
        return NodeLost(f"{self.name} is lost: no heartbeat for {HEARTBEAT_TIMEOUT:.0f} s")

    def end(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
