"""The address of a MongoDB database: from Sacred's flag `-m` or from the `SACRED_…` variables."""

import re
import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

from sacred.observers.mongo import parse_mongo_db_arg

from scaling_fl.errors import UserError

VARIABLES = ("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST")


class Address(NamedTuple):
    url: str  # may contain a password: never shown
    database: str
    collection: str = "runs"

    @property
    def hosts(self) -> str:
        """The part of the URL that is safe to show."""
        return re.split("[/?]", self.url.partition("://")[2].rpartition("@")[2])[0]

    def without_password(self, text: str) -> str:
        """`text` with the account and the password replaced by `…`."""
        account = self.url.partition("://")[2].rpartition("@")[0]
        password = account.partition(":")[2]
        for secret in filter(None, (account, password, urllib.parse.unquote_plus(password))):
            text = text.replace(secret, "…")
        return text


def from_flag(argument: str) -> Address:
    """Parse the argument of Sacred's flag `-m [HOST:PORT:]DATABASE[.COLLECTION]`. Raises `UserError`."""
    try:
        found = parse_mongo_db_arg(argument)
    except (ValueError, AttributeError):  # AttributeError: its pattern did not match
        # The argument, and so the error, may contain a password.
        raise UserError(
            "-m: expected HOST:PORT:DATABASE or DATABASE; a full URL, with user and password, belongs in SACRED_MONGO_URL"
        ) from None
    return Address(
        f"mongodb://{found.get('url', 'localhost:27017')}", found["db_name"], found.get("collection", "runs")
    )


def from_environment(environ: Mapping[str, str]) -> Address | None:
    """The address in the `SACRED_…` variables; `None` if none is set.

    SACRED_MONGO_URL is a full URL. Otherwise a bare SACRED_HOST is a cluster's DNS name (mongodb+srv), and `host:port`
    or a comma-separated list names servers; user and password are optional. Raises `UserError` if they
    are incomplete or contradictory.
    """
    user, password, database, host = (environ.get(name, "").strip() for name in VARIABLES)
    url = environ.get("SACRED_MONGO_URL", "").strip()
    if url:
        return _from_url(
            url, database, [name for name, value in (("SACRED_HOST", host), ("SACRED_USER", user)) if value]
        )
    if not any((user, password, database, host)):
        return None
    for name, value, needed in (
        ("SACRED_HOST", host, True),
        ("SACRED_DATABASE", database, True),
        ("SACRED_USER", user, bool(password)),
        ("SACRED_PASSWORD", password, bool(user)),
    ):
        if needed and not value:
            raise UserError(f"{name} is not set, but other SACRED_ variables are; set it in .env, or remove the others")
    scheme = "mongodb" if ":" in host or "," in host else "mongodb+srv"
    account = f"{urllib.parse.quote_plus(user)}:{urllib.parse.quote_plus(password)}@" if user else ""
    return Address(f"{scheme}://{account}{host}/?retryWrites=true&w=majority", database)


def _from_url(url: str, database: str, others: list[str]) -> Address:
    if others:
        raise UserError(f"SACRED_MONGO_URL and {others[0]} are both set; set one or the other")
    if not re.match(r"mongodb(\+srv)?://[^/]", url):
        raise UserError("SACRED_MONGO_URL: expected mongodb://HOST:PORT/DATABASE or mongodb+srv://HOST/DATABASE")
    after_hosts = re.split("[/?]", url.partition("://")[2], maxsplit=1)[1:]
    if "@" in "".join(after_hosts):  # part of a password would be parsed as an option, and named in pymongo's error
        raise UserError(
            "SACRED_MONGO_URL: there is an @ after the servers; write / as %2F, ? as %3F and @ as %40 in user and password, "
            "and @ as %40 in options"
        )
    in_path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    if not (database or in_path):
        raise UserError("SACRED_MONGO_URL names no database; append /NAME, or set SACRED_DATABASE")
    return Address(url, database or urllib.parse.unquote(in_path))
