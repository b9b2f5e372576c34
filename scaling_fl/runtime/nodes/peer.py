"""Another node's launcher, as this one's sees it: what it says, and whether it is still there.

Nothing that comes over the connection is ever unpickled.
"""

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from scaling_fl.errors import JobFailed, NodeLost, UserError
from scaling_fl.progress import Event
from scaling_fl.runtime import signals

HEARTBEAT_TIMEOUT = 10.0  # seconds without a sign of life, after which a node is lost
_MAX_MESSAGE_BYTES = 2**24  # bytes of a message


class Peer:
    """Another node's launcher; to this one's watch it is one more child."""

    def __init__(self, connection: socket.socket, name: str):
        connection.settimeout(5.0)  # who doesn't even read is lost, and must not hold this node up
        self.name = name
        self.failure: Exception | None = None
        self.progress_at = self.heartbeat_at = time.monotonic()
        self.done, self.phase = 0, 0  # the last phase that it has done, and that this node is in
        self.attempt = 0  # of all nodes together, after failures
        self.blocked = False  # whether none of its workers gets on
        self.values: list[Any] = []
        self._socket, self._lock, self._buffer = connection, threading.Lock(), b""

    @property
    def ended(self) -> bool:
        """Whether it has done its part of this phase, if one has begun."""
        return self.done >= self.phase > 0

    def sources(self) -> list[Any]:
        """What to wait for."""
        return [self._socket]

    def send(self, kind: str, value: Any = None) -> None:
        """Send it a message. That it is gone shows elsewhere."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall(json.dumps([kind, value]).encode() + b"\n")

    def is_disconnected(self) -> bool:
        """Whether it has closed the connection, before it has said anything that is still to be read."""
        try:
            readable = select.select([self._socket], [], [], 0)[0]
            return bool(readable) and not self._socket.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def receive(self, on_event: Callable[[Event], None]) -> None:
        """Handle all that has arrived."""
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
                    self.failure = NodeLost(f"{self.name} is no launcher of this program: it says {line[:40]!r}")
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
            case "failed" | "refused" if value[0] >= self.attempt:  # not what was over when this node began again
                self.failure = self.failure or (UserError if kind == "refused" else JobFailed)(value[1])
            case "stop":
                signals.receive_remote(value)
            case "stopped":
                signals.receive_remote(value)
                on_event({"event": "stopped"})

    def is_hung(self, stall_timeout: float) -> bool:
        """Whether it has given no sign of life for too long."""
        return time.monotonic() - self.progress_at > HEARTBEAT_TIMEOUT

    def is_blocked(self, stall_timeout: float) -> bool:
        """Whether that is so of all its workers."""
        return self.blocked

    def hang_failure(self, stall_timeout: float, on_event: Callable[[Event], None]) -> Exception:
        """What its silence means."""
        return NodeLost(f"{self.name} is lost: no sign of life from it for {HEARTBEAT_TIMEOUT:.0f} s")

    def end(self) -> None:
        """Let go of it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
