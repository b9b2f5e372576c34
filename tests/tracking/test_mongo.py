import socket
import socketserver
import ssl
import struct
import subprocess
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import gridfs
import pymongo
import pytest
from bson import ObjectId

from scaling_fl.errors import UserError
from scaling_fl.tracking import events, mongo_address
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import OUTPUT_END
from scaling_fl.tracking.replay import Replay
from tests.conftest import free_port
from tests.tracking import builders

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
    assert PASSWORD not in MongoEntry(found).explain(ValueError(f"bad {PASSWORD} in {found.url}"))


def test_no_variables_mean_no_mongodb_and_missing_ones_are_named() -> None:
    assert mongo_address.from_environment({}) is None
    assert mongo_address.from_environment(dict.fromkeys(mongo_address.VARIABLES, "")) is None
    with pytest.raises(UserError, match="SACRED_HOST is not set"):
        mongo_address.from_environment({"SACRED_DATABASE": "d"})
    with pytest.raises(UserError, match="SACRED_DATABASE is not set"):
        mongo_address.from_environment({"SACRED_HOST": "h"})
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


def database(server: str) -> Any:
    return pymongo.MongoClient(f"mongodb://{server}", serverSelectionTimeoutMS=5000)["lab"]


def test_an_entry_written_in_steps_equals_one_written_at_once(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    steps, once = (MongoEntry(Address(f"mongodb://{mongo}", name)) for name in ("lab", "once"))
    in_steps = Replay(log.path, steps)
    in_steps.step()
    runs = database(mongo).runs
    assert runs.find_one()["status"] == "RUNNING"
    builders.round_(log, 3, 0.1)
    in_steps.step()
    log.append("output", text="more")
    builders.round_(log, 3, 0.0625)  # again
    in_steps.step()
    builders.round_(log, 4, 0.03)
    log.append("completed")
    log.close()
    in_steps.step()
    Replay(log.path, once).step()
    assert in_steps.trouble is None

    def content(name: str) -> dict[str, Any]:
        """The entry and its metrics, with file ids replaced by file contents."""
        base = database(mongo).client[name]
        files, (entry,) = gridfs.GridFS(base), list(base.runs.find())
        for artifact in entry["artifacts"]:
            artifact["file_id"] = files.get(artifact["file_id"]).read()
        entry["experiment"]["sources"] = [[n, files.get(id_).read()] for n, id_ in entry["experiment"]["sources"]]
        metrics = {m.pop("name"): m for m in base.metrics.find()}
        ids = {str(m.pop("_id")): m for m in metrics.values()}
        assert {m.pop("id") for m in entry["info"]["metrics"]} == ids.keys(), "viewers look metrics up by these ids"
        entry["info"]["metrics"].sort(key=lambda m: m["name"])
        return {"entry": entry, "metrics": metrics}

    first, second = content("lab"), content("once")
    assert first == second
    entry = first["entry"]
    assert (entry["_id"], entry["status"], entry["captured_out"]) == (1, "COMPLETED", "hello\nmore\n")
    assert entry["config"]["job_name"] == "news"
    assert entry["experiment"]["sources"] == [["m.py", b"print()\n"]]
    assert first["metrics"].keys() == {"train.loss", "seconds.checkpoint", *(f"only.in.{n}" for n in (1, 2, 3, 4))}
    assert first["metrics"]["train.loss"]["steps"] == [1, 2, 3, 4]
    assert first["metrics"]["train.loss"]["values"] == [0.5, 0.25, 0.0625, 0.03]
    assert [artifact["name"] for artifact in entry["artifacts"]] == ["shards.csv", "metrics.csv"]
    assert entry["start_time"] < entry["stop_time"]
    assert len(list(database(mongo)["fs.files"].find())) == 3, "no artifact is stored twice"


def test_a_job_keeps_its_number_and_its_name_is_unique(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    log.close()
    Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab"))).step()
    again = EventLog(log.path)
    builders.start(again, after_round=2)
    again.close()
    resumed = MongoEntry(Address(f"mongodb://{mongo}", "lab"))
    resumed.check("news", events.job_id(log.path))
    Replay(log.path, resumed).step()
    assert resumed.location() == "run 1 in database lab"
    assert len(database(mongo).runs.find_one()["info"]["starts"]) == 2
    restarted = EventLog(log.path)
    builders.start(restarted, after_round=0)
    builders.round_(restarted, 1, 0.9)
    restarted.close()
    Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab"))).step()
    assert {m["name"]: m["values"] for m in database(mongo).metrics.find()} == {"train.loss": [0.9], "only.in.1": [1.5]}

    with pytest.raises(
        UserError, match=r"job_name=news: .* already has a job of this name, in run 1 \(RUNNING, h\); to resume it, use"
    ):
        resumed.check("news", None)
    with pytest.raises(UserError, match="in run 1"):
        resumed.check("news", "another id")
    resumed.check("old", None)
    database(mongo).runs.insert_one({"_id": 7, "config": {"job_name": "news"}, "command": "train", "status": "FAILED"})
    with pytest.raises(UserError, match=r"in run 1 \(RUNNING, h\), 7 \(FAILED, \?\); .*remove all but one"):
        resumed.check("news", events.job_id(log.path))
    database(mongo).runs.insert_one({"_id": ObjectId(), "command": "train"})  # an id that is not a number
    other = builders.job(tmp_path, "other")
    other.close()
    entry = MongoEntry(Address(f"mongodb://{mongo}", "lab"))
    replay = Replay(other.path, entry)
    replay.step()
    assert replay.trouble is None
    assert entry.location() == "run 8 in database lab"


def test_50_mb_of_output_and_thousands_of_points_fit(tmp_path: Path, mongo: str) -> None:
    log = builders.job(tmp_path)
    text = "x" * (2**20 - 1)
    for _ in range(50):
        log.append("output", text=text)
    for number in range(3, 5000):
        builders.round_(log, number, 0.5) if number == 3 else log.append(
            "round", round=number, metrics={"train.loss": 0.5}
        )
    log.append("completed")
    log.close()
    replay = Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab")))
    for _ in range(10):  # on a busy machine, the server may not answer in time
        replay.step()
        if replay.trouble is None:
            break
    assert replay.trouble is None, replay.describe_trouble()
    entry = database(mongo).runs.find_one()
    assert 2 * OUTPUT_END <= len(entry["captured_out"]) < 2 * OUTPUT_END + 200
    whole = next(artifact for artifact in entry["artifacts"] if artifact["name"] == "cout.txt")
    chunks, file = database(mongo)["fs.chunks"], database(mongo)["fs.files"].find_one(whole["file_id"])
    numbers = range(-(-file["length"] // file["chunkSize"]))
    # One by one, because the test server sends a whole result in one message.
    content = b"".join(chunks.find_one({"files_id": file["_id"], "n": n})["data"] for n in numbers)
    assert content == b"hello\n" + 50 * (text.encode() + b"\n")
    assert database(mongo).metrics.find_one({"name": "train.loss"})["steps"] == list(range(1, 5000))
