"""The MLflow server that the `MLFLOW_…` variables name, and requests of its REST API.

MLflow's own client would bring 14 packages, and by default retries a request for minutes.
The API: https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import requests

from scaling_fl.errors import UserError

_TIMEOUT = (2.5, 20.0)  # seconds to connect, and between two bytes of an answer

_Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


class Refusal(Exception):
    """The server answers with an error."""

    def __init__(self, answer: requests.Response):
        self.status, self.code = answer.status_code, ""
        said = answer.reason
        if answer.headers.get("content-type", "").startswith("text/plain"):
            said = answer.text
        try:
            error = answer.json()
            self.code, said = str(error["error_code"]), f"{error['error_code']}: {error['message']}"
        except (ValueError, KeyError, TypeError):  # it comes from a proxy, or from another program
            pass
        super().__init__(f"status {self.status}, {said[:300]}")


class Server(NamedTuple):
    url: str  # without user and password
    experiment: str
    auth: _Auth | None = None
    verify: bool | str = True  # the server's certificate; a path: against the authorities in that file
    secrets: tuple[str, ...] = ()  # never shown

    def call(self, method: str, path: str, **options: Any) -> Any:
        """The server's answer to a request. Raises `Refusal`, or what requests raises."""
        answer = requests.request(
            method, f"{self.url}/api/2.0/{path}", auth=self.auth, verify=self.verify, timeout=_TIMEOUT,
            allow_redirects=False, **options,
        )  # fmt: skip
        if answer.status_code != 200:
            raise Refusal(answer)
        return answer.json() if answer.content else None

    def post(self, path: str, **fields: Any) -> Any:
        return self.call("POST", f"mlflow/{path}", json=fields)

    def experiment_id(self) -> str | None:
        """The id of the experiment; `None` if there is none of this name."""
        try:
            found = self.call("GET", "mlflow/experiments/get-by-name", params={"experiment_name": self.experiment})
        except Refusal as refusal:
            if refusal.code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return str(found["experiment"]["experiment_id"])

    def explain(self, error: Exception) -> str:
        """The cause of an error and its remedy, without secrets."""
        root = _root(error) if isinstance(error, requests.ConnectionError | requests.Timeout) else error
        cause = self.without_secrets(" ".join(f"{type(root).__name__}: {root}".split()))
        status = error.status if isinstance(error, Refusal) else None
        if status == 401:
            return (
                f"it rejects the user, the password or the token ({cause}); check MLFLOW_TRACKING_USERNAME, "
                "MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN"
            )
        if status == 403:
            return (
                f"it forbids the request ({cause}); ask for the permission EDIT on experiment {self.experiment}; a server that "
                "rejects the host must be started with --allowed-hosts"
            )
        if isinstance(error, requests.exceptions.SSLError):
            return (
                f"TLS failed ({cause}); check that the server uses TLS, and its certificate "
                "(MLFLOW_TRACKING_SERVER_CERT_PATH)"
            )
        if isinstance(error, requests.ConnectionError | requests.Timeout) or (status is not None and status >= 500):
            return f"it can't be reached ({cause}); check MLFLOW_TRACKING_URI, the network and the firewall"
        if isinstance(error, requests.JSONDecodeError) or (isinstance(error, Refusal) and not error.code):
            return f"no MLflow server answers there ({cause}); check MLFLOW_TRACKING_URI"
        return cause

    def without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text


def from_environment(environ: Mapping[str, str]) -> Server | None:
    """The server in the `MLFLOW_…` variables; `None` without MLFLOW_TRACKING_URI. Raises `UserError`."""
    names = ("URI", "USERNAME", "PASSWORD", "TOKEN", "SERVER_CERT_PATH", "INSECURE_TLS")
    uri, user, password, token, authorities, insecure = (
        environ.get(f"MLFLOW_TRACKING_{name}", "").strip() for name in names
    )
    if not uri:
        return None
    try:
        parts = urllib.parse.urlsplit(uri)
    except ValueError:  # an unclosed bracket
        parts = urllib.parse.urlsplit("")
    if "@" in parts.path + parts.query + parts.fragment:  # part of a password would be shown as the address
        raise UserError(
            "MLFLOW_TRACKING_URI: there is an @ after the server; write / as %2F, ? as %3F and @ as %40 in user and "
            "password, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    account, _, host = parts.netloc.rpartition("@")
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"(\[[\da-fA-F:.]+\]|[^\s:\[\]]+)(:\d+)?", host):
        found = f"{parts.scheme}:…" if parts.scheme else "no scheme"
        raise UserError(
            f"MLFLOW_TRACKING_URI: expected http://HOST:PORT or https://HOST of an MLflow server, found {found}; start "
            "one with `mlflow server`, or leave the variable empty"
        )
    if bool(user) != bool(password):
        raise UserError(
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD: only one of them is set; set both, or neither"
        )
    if not user and not token and account:
        user, _, password = map(urllib.parse.unquote, account.partition(":"))
    auth: _Auth | None = None
    if user:
        auth = requests.auth.HTTPBasicAuth(user.encode(), password.encode())
    elif token:
        auth = _bearer(token)
    secrets = (account, password, urllib.parse.quote(password, safe=""), token)
    return Server(
        f"{parts.scheme}://{host}{parts.path.rstrip('/')}",
        environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or "scaling_fl",
        auth,
        authorities or insecure.lower() not in ("true", "1"),
        tuple(filter(None, secrets)),
    )


def _bearer(token: str) -> _Auth:
    def sign(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _root(error: BaseException) -> BaseException:
    """The first cause; requests' own message is a nest of three libraries' messages."""
    cause = error.__cause__ or error.__context__
    return error if cause is None else _root(cause)
