"""Servers that can't be reached, speak no TLS or reject every user: the message names the cause."""

import socket
import socketserver
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import bson
import pymongo.errors
import pytest

from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from tests.conftest import free_port


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    path = tmp_path / "self-signed.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", str(path), "-out", str(path.with_suffix(".crt"))],
        check=True, capture_output=True,
    )  # fmt: skip
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[int]:
    """The port of a TLS server with a self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
                context.wrap_socket(connection, server_side=True).close()
            except ssl.SSLError:
                continue
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest.fixture
def server_with_accounts() -> Iterator[int]:
    """The port of a server that speaks just enough of MongoDB's protocol to reject every user."""
    hello = {"ok": 1, "isWritablePrimary": True, "ismaster": True, "maxWireVersion": 21, "minWireVersion": 0,
             "saslSupportedMechs": ["SCRAM-SHA-256"]}  # fmt: skip
    refusal = {"ok": 0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": "Authentication failed."}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while header := self.rfile.read(16):
                length, number, _, opcode = struct.unpack("<iiii", header)
                body = self.rfile.read(length - 16)
                if opcode == 2013:  # OP_MSG: flags, then a document of kind 0
                    name, prefix, kind = next(iter(bson.decode(body[5:]))), struct.pack("<iB", 0, 0), 2013
                else:  # OP_QUERY, the hello of old clients; answered by OP_REPLY
                    name, prefix, kind = "hello", struct.pack("<iqii", 8, 0, 0, 1), 1
                answer = prefix + bson.encode(hello if name in ("hello", "ismaster") else refusal)
                self.wfile.write(struct.pack("<iiii", 16 + len(answer), 1, number, kind) + answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def explain_failure(url: str) -> str:
    """Connect to a server that can't be used; return the explanation that users see."""
    entry = MongoEntry(Address(url, "lab"))
    with pytest.raises(Exception) as raised:  # noqa: PT011 (whatever pymongo raises)
        entry.open("id")
    if entry._client is not None:  # the address could be parsed
        options = entry._client.options
        assert options.server_selection_timeout <= 5, "seconds; pymongo's defaults are 30, and 20 to connect"
        assert options.pool_options.connect_timeout <= 5
        assert options.pool_options.socket_timeout is not None, "pymongo's default is no time-out"
    entry.close()
    message = entry.explain(raised.value)
    assert "hunter2" not in message
    assert "\n" not in message
    return message


def test_the_causes_of_a_failed_connection_are_distinguished(
    mongo: str, tls_server: int, server_with_accounts: int
) -> None:
    assert "it can't be reached" in explain_failure(f"mongodb://u:hunter2@127.0.0.1:{free_port()}/")
    assert "TLS failed" in explain_failure(f"mongodb://127.0.0.1:{tls_server}/?tls=true")
    assert "TLS failed" in explain_failure(f"mongodb://{mongo}/?tls=true"), "a server without TLS"
    assert "rejects the user or the password" in explain_failure(
        f"mongodb://u:hunter2@127.0.0.1:{server_with_accounts}/"
    )
    assert "the address can't be used" in explain_failure("mongodb://h:port/")
    assert "the address can't be used" in explain_failure("mongodb+srv://no-such-cluster.invalid/")


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (18, "it rejects the user or the password"), (8000, "it rejects the user or the password"),  # Atlas has its own
        (13, "the user lacks permission in database lab"), (33, "the user lacks permission in database lab"),
        (11601, "OperationFailure: "),
    ],
)  # fmt: skip
def test_refusals_are_told_by_their_codes(code: int, cause: str) -> None:
    entry = MongoEntry(Address("mongodb://u:hunter2@h/", "lab"))
    said = entry.explain(pymongo.errors.OperationFailure("no, hunter2", code))
    assert said.startswith(cause)
    assert "hunter2" not in said
