"""A TCP proxy to a server: tests can cut it, stall it, or answer in place of the server."""

import contextlib
import socket
import threading
from collections.abc import Callable

_METHODS = (b"PUT ", b"POST ", b"DELETE ", b"GET ", b"HEAD ")


class Line:
    """Forwards TCP from `port` to a server. Tests may change its state at any time."""

    def __init__(self, server: int):
        self.down = False  # new connections are closed at once
        self.stalled = False  # requests are dropped, and nothing is answered
        self.answer: Callable[[str], bytes | None] = lambda method: (
            None
        )  # a whole HTTP response in place of the server's
        self._cut_after: int | None = None  # bytes sent to the server
        self._on_cut: Callable[[], None] = lambda: None
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int, on_cut: Callable[[], None]) -> None:
        """After `count` more bytes to the server, call `on_cut` and take the line down."""
        self._cut_after, self._on_cut = count, on_cut

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._server)) as server:
            threading.Thread(target=_copy, args=(server, client), daemon=True).start()
            while (piece := client.recv(2**14)) and not self.down:
                if self.stalled:
                    continue
                if piece.startswith(_METHODS) and (answer := self.answer(piece.split()[0].decode())) is not None:
                    client.sendall(answer)
                    client.shutdown(socket.SHUT_WR)
                    while client.recv(2**16):  # closing with unread data would reset the connection and drop the answer
                        pass
                    return
                if self._cut_after is not None and len(piece) >= self._cut_after:
                    server.sendall(piece[: self._cut_after])
                    self.down, self._cut_after = True, None
                    self._on_cut()
                    return
                if self._cut_after is not None:
                    self._cut_after -= len(piece)
                server.sendall(piece)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(2**14):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)
