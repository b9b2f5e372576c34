"""Secrets from Google Cloud's Secret Manager, so that job definitions needn't contain them."""

import base64
import os
from collections.abc import Mapping

from scaling_fl.errors import UserError

_SCHEME = "secret://"
_SERVICE = "https://secretmanager.googleapis.com/v1"


def resolved(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with each `SACRED_…=secret://projects/P/secrets/S/versions/V` replaced by that secret.

    `MLFLOW_TRACKING_…` likewise. Uses the machine's credentials for Google Cloud. Raises `UserError` if a secret can't be read.
    """
    named = {
        key: value
        for key, value in environ.items()
        if key.startswith(("SACRED_", "MLFLOW_TRACKING_")) and value.startswith(_SCHEME)
    }
    return dict(environ) | {key: _read(key, value) for key, value in named.items()}


def _read(key: str, value: str) -> str:
    import google.auth  # slow to import, and rarely needed
    from google.auth.transport.requests import AuthorizedSession

    service = os.environ.get("SECRET_MANAGER_ENDPOINT") or _SERVICE
    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        answer = AuthorizedSession(credentials).get(f"{service}/{value.removeprefix(_SCHEME)}:access", timeout=30)
        answer.raise_for_status()
        return base64.b64decode(answer.json()["payload"]["data"]).decode().strip()
    except Exception as error:  # of google.auth, of requests, or from an unexpected answer
        raise UserError(
            f"{key}={value}: cannot read it from Secret Manager ({type(error).__name__}: {error}); expected "
            "secret://projects/PROJECT/secrets/NAME/versions/latest, and the role secretAccessor for this machine's account"
        ) from error
