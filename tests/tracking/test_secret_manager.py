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
from scaling_fl.tracking import mongo, secret_manager

PLACE = "secret://projects/lab/secrets/mongo/versions/latest"


class Service(BaseHTTPRequestHandler):
    """What Secret Manager answers, to those who may ask."""

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


def test_a_secret_takes_the_place_of_its_name() -> None:
    environ = {"SACRED_MONGO_URL": PLACE, "SACRED_DATABASE": "", "OTHER": PLACE}
    found = secret_manager.resolved(environ)
    assert found == environ | {"SACRED_MONGO_URL": "mongodb://me:pass@db:27017/runs"}
    address = mongo.address(found)
    assert address is not None
    assert address.database == "runs"
    assert environ["SACRED_MONGO_URL"] == PLACE, "nothing is put where others see it"


def test_a_secret_that_is_not_given_is_named_and_what_would_help() -> None:
    with pytest.raises(UserError) as error:
        secret_manager.resolved({"SACRED_PASSWORD": PLACE.replace("mongo", "other")})
    said = str(error.value)
    assert said.startswith(
        "SACRED_PASSWORD=secret://projects/lab/secrets/other/versions/latest: Secret Manager doesn't"
    )
    assert "403" in said
    assert "the role secretAccessor for this machine's account" in said


def test_other_values_are_left_alone() -> None:
    environ = {"SACRED_HOST": "db:27017", "SACRED_PASSWORD": "secret:/x"}
    assert secret_manager.resolved(environ) == environ
