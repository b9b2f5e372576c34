"""The MLflow server in the environment: which addresses are refused, what is sent, and how errors are explained."""

import base64
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import pytest
import requests

from scaling_fl.errors import UserError
from scaling_fl.tracking import mlflow_server
from tests.conftest import free_port
from tests.tracking.test_mongo_connection import certificate, tls_server

__all__ = ["certificate", "tls_server"]  # fixtures

SECRET = "hun/ter@2"
ESCAPED = "hun%2Fter%402"


def server(uri: str, **names: str) -> mlflow_server.Server:
    environ = {f"MLFLOW_TRACKING_{name}": value for name, value in names.items()}
    found = mlflow_server.from_environment({"MLFLOW_TRACKING_URI": uri} | environ)
    assert found is not None
    return found


class Answers(ThreadingHTTPServer):
    """A server that gives every request the same answer."""

    answer = (200, "application/json", b"{}")

    def __init__(self) -> None:
        self.signed: list[str | None] = []  # the header Authorization of each request
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.signed.append(self.headers.get("authorization"))
                status, kind, body = outer.answer
                self.send_response(status)
                for name, value in (("content-type", kind), ("content-length", str(len(body))), ("location", "/login")):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def answers() -> Iterator[Answers]:
    with Answers() as found:
        yield found
        found.shutdown()


def explain_failure(found: mlflow_server.Server) -> str:
    """Ask for the experiment; return the explanation that users see."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 (whatever requests raises)
        found.experiment_id()
    message = found.explain(raised.value)
    assert SECRET not in message
    assert ESCAPED not in message
    assert "\n" not in message
    return message


def test_without_the_variable_there_is_no_server() -> None:
    assert mlflow_server.from_environment({"MLFLOW_EXPERIMENT_NAME": "e", "MLFLOW_TRACKING_URI": " "}) is None


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://localhost:5000", "http://localhost:5000"),
        ("https://lab.example/mlflow/", "https://lab.example/mlflow"),
        (f"https://me:{ESCAPED}@lab.example:8443", "https://lab.example:8443"),
        ("http://[::1]:5000/", "http://[::1]:5000"),
    ],
)
def test_the_address_is_shown_without_the_account(uri: str, shown: str) -> None:
    found = server(uri)
    assert found.url == shown
    assert (found.experiment, found.verify) == ("scaling_fl", True)


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("databricks", "no scheme"),
        ("./mlruns", "no scheme"),
        ("sqlite:///mlflow.db", "sqlite:…"),
        ("localhost:5000", "localhost:…"),
        ("http://", "http:…"),
        ("http://me:hun:5000/ter", "http:…"),
        ("http://[::1", "no scheme"),
        ("http://host:port", "http:…"),
    ],
)
def test_what_names_no_server_is_refused(uri: str, found: str) -> None:
    with pytest.raises(UserError) as raised:
        server(uri)
    assert str(raised.value) == (
        f"MLFLOW_TRACKING_URI: expected http://HOST:PORT or https://HOST of an MLflow server, found {found}; start one "
        "with `mlflow server`, or leave the variable empty"
    )


@pytest.mark.parametrize("uri", [f"http://me:{SECRET}@h", "http://me:hunter#2@h", "http://me:hunter?2@h"])
def test_an_unescaped_password_is_refused_without_showing_it(uri: str) -> None:
    with pytest.raises(
        UserError, match=r"^MLFLOW_TRACKING_URI: there is an @ after the server; write / as %2F"
    ) as raised:
        server(uri)
    assert "hun" not in str(raised.value)


@pytest.mark.parametrize("escaped", ["hun%2fter%402", "hun%2Fter%402"])
def test_no_spelling_of_the_password_is_shown(escaped: str) -> None:
    """Of the account as it is written, of the password alone, and of the password with the escapes of a library."""
    found = server(f"http://me:{escaped}@h:5000")
    for text in (f"me:{escaped}@h", f"password {SECRET}", "hun%2Fter%402"):
        shown = found.without_secrets(text)
        assert "ter" not in shown
        assert "…" in shown


@pytest.mark.parametrize("name", ["USERNAME", "PASSWORD"])
def test_half_an_account_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"only one of them is set; set both, or neither$") as raised:
        server("http://h", **{name: SECRET})
    assert SECRET not in str(raised.value)


def test_the_account_or_the_token_is_sent(answers: Answers) -> None:
    answers.answer = (200, "application/json", b'{"experiment": {"experiment_id": "7"}}')
    address = f"127.0.0.1:{answers.server_port}"
    account = {"USERNAME": "é", "PASSWORD": SECRET}
    assert server(f"http://{address}").experiment_id() == "7"
    server(f"http://me:{ESCAPED}@{address}").experiment_id()
    server(f"http://me:other@{address}", **account, TOKEN="t").experiment_id()
    server(f"http://me:other@{address}", TOKEN=SECRET).experiment_id()
    of_uri, of_names = (f"Basic {base64.b64encode(f'{user}:{SECRET}'.encode()).decode()}" for user in ("me", "é"))
    assert answers.signed == [None, of_uri, of_names, f"Bearer {SECRET}"]


def test_a_token_that_the_server_repeats_is_not_shown(answers: Answers) -> None:
    answers.answer = (403, "text/plain", f"{SECRET} has expired".encode())
    assert "… has expired" in explain_failure(server(f"http://127.0.0.1:{answers.server_port}", TOKEN=SECRET))


def test_certificates_are_checked_unless_the_variables_say_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("true", "True", "1"):
        assert server("https://h", INSECURE_TLS=value).verify is False
    assert server("https://h", INSECURE_TLS="false").verify is True
    authorities = server("https://h", SERVER_CERT_PATH="/ca.pem")
    assert authorities.verify == "/ca.pem"
    monkeypatch.setattr(requests, "request", asked := Mock(return_value=Mock(status_code=200, content=b"")))
    authorities.call("GET", "mlflow")
    assert asked.call_args.kwargs["verify"] == "/ca.pem"


@pytest.mark.parametrize(
    ("status", "kind", "body", "expected"),
    [
        (401, "text/html", f"<p>{SECRET}", r"it rejects the user, the password or the token \(Refusal: status 401, Un"),
        (
            403,
            "text/plain",
            f"Permission denied, {SECRET}",
            r"it forbids the request \(.*denied, …\); ask for the permi",
        ),
        (
            302,
            "text/html",
            "",
            r"no MLflow server answers there \(Refusal: status 302, Found\); check MLFLOW_TRACKING_",
        ),
        (
            404,
            "text/html",
            "<h1>",
            r"no MLflow server answers there \(Refusal: status 404, Not Found\); check MLFLOW_T",
        ),
        (200, "text/html", "<html>", r"no MLflow server answers there \(J.*\); check MLFLOW_TRACKING_URI$"),
        (
            503,
            "text/plain",
            "later",
            r"it can't be reached \(Refusal: status 503, later\); check MLFLOW_TRACKING_URI, ",
        ),
        (400, "application/json", '{"error_code": "BAD", "message": "no"}', r"^Refusal: status 400, BAD: no$"),
    ],
)
def test_errors_of_the_server_are_distinguished(
    answers: Answers, status: int, kind: str, body: str, expected: str
) -> None:
    answers.answer = (status, kind, body.encode())
    message = explain_failure(server(f"http://me:{ESCAPED}@127.0.0.1:{answers.server_port}"))
    assert re.search(expected, message), message


def test_failed_connections_are_distinguished(
    tls_server: int, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = f"me:{ESCAPED}@"
    refused = explain_failure(server(f"http://{account}127.0.0.1:{free_port()}"))
    assert refused.startswith("it can't be reached (ConnectionRefusedError: [Errno ")
    assert refused.endswith("; check MLFLOW_TRACKING_URI, the network and the firewall")
    assert "it can't be reached (gaierror: " in explain_failure(server(f"http://{account}no-such-host.invalid"))
    for port in (tls_server, answers.server_port):  # a self-signed certificate; a server without TLS
        message = explain_failure(server(f"https://{account}127.0.0.1:{port}"))
        assert message.startswith("TLS failed (SSL")
        assert message.endswith(
            "; check that the server uses TLS, and its certificate (MLFLOW_TRACKING_SERVER_CERT_PATH)"
        )


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, answer = mlflow_server._TIMEOUT
    assert connect <= 5, "seconds; requests' default is to wait for ever"
    assert answer <= 20
    monkeypatch.setattr(mlflow_server, "_TIMEOUT", (connect, 0.125))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = server(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(requests.Timeout, match=r"read timeout=0\.125") as raised:
            found.experiment_id()
    assert found.explain(raised.value).startswith("it can't be reached (TimeoutError: timed out); check")
