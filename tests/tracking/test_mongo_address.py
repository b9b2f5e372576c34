"""MongoDB's address, from the environment or the flag `-m`: its forms, and no password in any message."""

import traceback
import urllib.parse

import pymongo
import pytest

from scaling_fl.errors import UserError
from scaling_fl.tracking import mongo_address
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address

PASSWORD = "p:/?#[]@ %$ü"


@pytest.mark.parametrize(
    ("host", "scheme"),
    [
        ("cluster0.example", "mongodb+srv://"),
        ("db:27017", "mongodb://"),
        ("a:1,b:2", "mongodb://"),
        ("a,b", "mongodb://"),
    ],
)
def test_the_form_of_the_host_determines_the_scheme(host: str, scheme: str) -> None:
    found = mongo_address.from_environment(
        {"SACRED_HOST": host, "SACRED_DATABASE": "lab", "SACRED_USER": "", "SACRED_PASSWORD": ""}
    )
    assert found is not None
    assert found.url.startswith(f"{scheme}{host}/")
    assert (found.database, found.hosts) == ("lab", host)


def test_credentials_are_escaped_and_never_shown() -> None:
    variables = {"SACRED_HOST": "h:1", "SACRED_DATABASE": "d", "SACRED_USER": "me@lab", "SACRED_PASSWORD": PASSWORD}
    found = mongo_address.from_environment(variables)
    assert found is not None
    parsed = pymongo.uri_parser.parse_uri(found.url)
    assert (parsed["username"], parsed["password"]) == ("me@lab", PASSWORD)
    assert parsed["nodelist"] == [("h", 1)]
    assert found.hosts == "h:1"
    escaped = urllib.parse.quote_plus(PASSWORD)
    said = MongoEntry(found).explain(ValueError(f"bad {PASSWORD} or {escaped} in {found.url}"))
    assert PASSWORD not in said
    assert escaped not in said


def test_no_variables_mean_no_mongodb_and_missing_ones_are_named() -> None:
    assert mongo_address.from_environment({}) is None
    assert mongo_address.from_environment(dict.fromkeys(mongo_address.VARIABLES, "")) is None
    with pytest.raises(UserError, match="SACRED_HOST is not set"):
        mongo_address.from_environment({"SACRED_DATABASE": "d"})
    with pytest.raises(UserError, match="SACRED_DATABASE is not set"):
        mongo_address.from_environment({"SACRED_HOST": "h"})
    with pytest.raises(UserError, match="SACRED_USER is not set"):
        mongo_address.from_environment({"SACRED_HOST": "h", "SACRED_DATABASE": "d", "SACRED_PASSWORD": "p"})
    with pytest.raises(UserError, match="SACRED_PASSWORD is not set"):
        mongo_address.from_environment({"SACRED_HOST": "h", "SACRED_DATABASE": "d", "SACRED_USER": "u"})


def test_a_full_url_is_used_as_it_is() -> None:
    url = "mongodb://me:secret@a:1,b:2/lab%20two?authSource=admin&tls=true"
    assert mongo_address.from_environment({"SACRED_MONGO_URL": url}) == Address(url, "lab two")
    assert mongo_address.from_environment({"SACRED_MONGO_URL": url, "SACRED_DATABASE": "other"}) == Address(
        url, "other"
    )
    assert Address(url, "d").hosts == "a:1,b:2"
    assert Address("mongodb+srv://me:un/escaped@c.example?x=@", "d").hosts != "me:un"
    for variables, message in (
        ({"SACRED_MONGO_URL": "db:27017"}, "expected mongodb://HOST:PORT/DATABASE"),
        ({"SACRED_MONGO_URL": "mongodb://me:secret@h:1"}, "names no database; append /NAME"),
        ({"SACRED_MONGO_URL": url, "SACRED_HOST": "h"}, "SACRED_MONGO_URL and SACRED_HOST are both set"),
        ({"SACRED_MONGO_URL": url, "SACRED_USER": "u"}, "SACRED_MONGO_URL and SACRED_USER are both set"),
        ({"SACRED_MONGO_URL": "mongodb://me:a?secret@h:1/lab?w=1"}, "an @ after the servers; write / as %2F"),
        ({"SACRED_MONGO_URL": "mongodb://me:a/secret@h:1/lab"}, "an @ after the servers"),
        ({"SACRED_MONGO_URL": "mongodb:/me:secret@h:1/lab"}, "expected mongodb://HOST:PORT/DATABASE"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            mongo_address.from_environment(variables)
        assert "secret" not in str(raised.value)


def test_an_invalid_flag_is_refused_without_showing_it() -> None:
    assert mongo_address.from_flag("h:1:lab.mine") == Address("mongodb://h:1", "lab", "mine")
    assert mongo_address.from_flag("lab") == Address("mongodb://localhost:27017", "lab")
    for flag in (
        "a:b:c", "mongodb://u:hunter2@127.0.0.1:27917/omni", "u:hunter2@127.0.0.1:27917:omni", "u:hunter2@h", "hunter2:h:1",
        "h:1:lab.hunter2.x", "hunter2 x", "h:hunter2",
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"-m: expected HOST:PORT:DATABASE .* SACRED_MONGO_URL") as raised:
            mongo_address.from_flag(flag)
        message = "".join(traceback.format_exception(raised.value))  # the stack trace that `-d` shows
        assert flag not in message
        assert "hunter2" not in message
