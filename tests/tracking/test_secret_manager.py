import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import google.auth
import pytest
from google.auth.credentials import AnonymousCredentials

from scaling_fl.errors import UserError
from scaling_fl.tracking import mongo_address, secret_manager

REFERENCE = "secret://projects/lab/secrets/mongo/versions/latest"


class Service(BaseHTTPRequestHandler):
    """Secret Manager, with one secret that may be read."""

    def do_GET(self) -> None:
        known = self.path == "/projects/lab/secrets/mongo/versions/latest:access"
        content = (
            {"payload": {"data": base64.b64encode(b"mongodb://me:pass@db:27017/runs\n").decode()}} if known else {}
        )
        self.send_response(200 if known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SECRET_MANAGER_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(google.auth, "default", lambda scopes: (AnonymousCredentials(), "lab"))
    yield
    server.shutdown()
    server.server_close()


def test_a_reference_is_replaced_by_its_secret() -> None:
    environ = {"SACRED_MONGO_URL": REFERENCE, "SACRED_DATABASE": "", "OTHER": REFERENCE}
    found = secret_manager.resolved(environ)
    assert found == environ | {"SACRED_MONGO_URL": "mongodb://me:pass@db:27017/runs"}
    assert secret_manager.resolved({"MLFLOW_TRACKING_TOKEN": REFERENCE}) == {
        "MLFLOW_TRACKING_TOKEN": "mongodb://me:pass@db:27017/runs"
    }
    address = mongo_address.from_environment(found)
    assert address is not None
    assert address.database == "runs"
    assert environ["SACRED_MONGO_URL"] == REFERENCE, "the given environment is unchanged"


def test_an_unreadable_secret_is_named_with_a_remedy() -> None:
    with pytest.raises(UserError) as error:
        secret_manager.resolved({"SACRED_PASSWORD": REFERENCE.replace("mongo", "other")})
    message = str(error.value)
    assert message.startswith(
        "SACRED_PASSWORD=secret://projects/lab/secrets/other/versions/latest: cannot read it from Secret Manager"
    )
    assert "403" in message
    assert "the role secretAccessor for this machine's account" in message


def test_other_values_are_left_alone() -> None:
    environ = {"SACRED_HOST": "db:27017", "SACRED_PASSWORD": "secret:/x"}
    assert secret_manager.resolved(environ) == environ
