"""Sacred's entry in MongoDB, as its MongoObserver lays it out: `runs`, `metrics`, files in GridFS. No other module
knows of MongoDB."""

import hashlib
import random
import re
import ssl
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gridfs
import pymongo
from pymongo import errors
from sacred.observers.mongo import parse_mongo_db_arg

from scaling_fl.errors import UserError
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.record import OUTPUT_END, Record

VARIABLES = ("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST")
_FIND_SERVER_MS = 5000  # pymongo's own is 30 s
_CONNECT_MS = 2500  # shorter, so that the reason of a failure is known by then
_ANSWER_MS = 20000  # for one operation; pymongo's own is forever


class Address(NamedTuple):
    url: str  # may hold a password: never shown
    database: str
    collection: str = "runs"

    @property
    def shown(self) -> str:
        """Hosts alone."""
        return re.split("[/?]", self.url.partition("://")[2].rpartition("@")[2])[0]

    def without_password(self, text: str) -> str:
        account = self.url.partition("://")[2].rpartition("@")[0]
        password = account.partition(":")[2]
        for secret in filter(None, (account, password, urllib.parse.unquote_plus(password))):
            text = text.replace(secret, "…")
        return text


class MongoEntry:
    """The job's document in `runs`, and what belongs to it."""

    def __init__(self, address: Address):
        self.address, self.name, self.title = address, f"MongoDB at {address.shown}", "MongoDB"
        self._client: pymongo.MongoClient[dict[str, Any]] | None = None
        self._id: int | None = None

    throttled = True

    def open(self, job_id: str) -> float:
        runs = self._database()[self.address.collection]
        entry = runs.find_one({"info.job_id": job_id}, {"info": 1})
        if entry is None:
            while True:
                newest = runs.find_one({"_id": {"$gte": 0}}, {"_id": 1}, sort=[("_id", -1)])  # of the numbers
                self._id = 1 + int(newest["_id"] if newest else 0)
                try:
                    runs.insert_one({"_id": self._id, "info": {"job_id": job_id}, "status": "RUNNING"})
                    break
                except errors.DuplicateKeyError:  # another run took it
                    time.sleep(random.random())
            return 0.0
        self._id = entry["_id"]
        return float(entry["info"].get("last_event", 0.0))

    def check(self, job_name: str, job_id: str | None) -> None:
        """Raises `UserError` where the name stands in an entry of another job, and what pymongo raises."""
        runs = self._database()[self.address.collection]
        query = {"config.job_name": job_name, "command": {"$exists": True}}
        found = list(runs.find(query, {"info": 1, "host": 1, "status": 1}, sort=[("_id", 1)]))
        ours = [entry for entry in found if job_id and entry.get("info", {}).get("job_id") == job_id]
        if found and found != ours[:1]:
            runs_said = ", ".join(
                f"{entry['_id']} ({entry.get('status', '?')}, {entry.get('host', {}).get('hostname', '?')})"
                for entry in found
            )
            remedy = "take another job_name, or remove all but one" if ours else (
                "to resume it, use its checkpoints_dir, or the folder in which it was begun; else take another job_name"
            )  # fmt: skip
            raise UserError(f"job_name={job_name}: {self.name} has it already, in run {runs_said}; {remedy}")

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        database, kinds = self._database(), {event["event"] for event in events}
        whole = "created" in kinds
        entry = dict(record.entry)
        experiment = entry.pop("experiment", {})
        if whole or "output" in kinds:
            entry["captured_out"] = record.output
        if whole or "started" in kinds:
            sources = [[name, self._stored(name, text.encode())] for name, text in record.sources.items()]
            entry["experiment"] = experiment | {"sources": sources}
            entry |= {"format": "MongoObserver-0.7.0", "config": record.config}
        if not kinds <= {"output"}:
            changed = None if whole or "started" in kinds else {event["round"] for event in events if "round" in event}
            entry["info"] = record.info | {"metrics": self._write_metrics(record, changed)}
        if whole or kinds & {"shards", *event_file.ENDS}:
            entry["artifacts"] = self._artifacts(record, path)
        database[self.address.collection].update_one({"_id": self._id}, {"$set": entry})

    def _write_metrics(self, record: Record, changed: set[int] | None) -> list[dict[str, str]]:
        """Bring the metrics' documents up to date with these rounds, or with all; their names and ids."""
        collection = self._database()["metrics"]
        operations = [
            pymongo.UpdateOne({"run_id": self._id, "name": name}, {"$set": record.points(name)}, upsert=True)
            for name, points in record.metrics.items()
            if changed is None or not changed.isdisjoint(points)
        ]
        if changed is None:
            collection.delete_many({"run_id": self._id, "name": {"$nin": list(record.metrics)}})
        if operations:
            collection.bulk_write(operations, ordered=False)
        found = collection.find({"run_id": self._id}, {"name": 1})
        return [{"name": document["name"], "id": str(document["_id"])} for document in found]

    def _artifacts(self, record: Record, path: Path) -> list[dict[str, Any]]:
        files = record.artifacts()
        if record.output_length > 2 * OUTPUT_END:
            texts = (event["text"] for event in event_file.read(path)[0] if event["event"] == "output")
            files["cout.txt"] = "".join(f"{text}\n" for text in texts).encode()
        prefix = f"artifact://{self.address.collection}/{self._id}"
        return [{"name": name, "file_id": self._stored(f"{prefix}/{name}", data)} for name, data in files.items()]

    def _stored(self, name: str, content: bytes) -> Any:
        """The id of this content in GridFS under this name; of an artifact the old content goes."""
        files, digest = gridfs.GridFS(self._database()), hashlib.md5(content).hexdigest()
        same = files.find_one({"filename": name, "metadata.md5": digest})
        if same is not None:
            return same._id
        new = files.put(content, filename=name, metadata={"md5": digest})
        if name.startswith("artifact://"):
            for old in files.find({"filename": name}):
                if old._id != new:
                    files.delete(old._id)
        return new

    def _database(self) -> Any:
        if self._client is None:
            self._client = pymongo.MongoClient(
                self.address.url, serverSelectionTimeoutMS=_FIND_SERVER_MS, connectTimeoutMS=_CONNECT_MS,
                socketTimeoutMS=_ANSWER_MS, appname="scaling_fl",
            )  # fmt: skip
        return self._client[self.address.database]

    def location(self) -> str:
        return "" if self._id is None else f"run {self._id} in database {self.address.database}"

    def explain(self, error: Exception) -> str:
        said = self.address.without_password(_said(error))
        code = error.code if isinstance(error, errors.OperationFailure) else None
        chain = list(_causes(error))
        if code in (18, 8000):
            return f"it refuses the user or the password ({said}); check SACRED_USER and SACRED_PASSWORD"
        if code in (13, 33):
            return f"the user may not do this in database {self.address.database} ({said}); ask for the role readWrite"
        if any(isinstance(cause, ssl.SSLError) for cause in chain) or re.search(r"SSL|certificate", said):
            return (
                f"TLS failed ({said}); check that the server speaks it, and its certificate: tls… in SACRED_MONGO_URL"
            )
        if isinstance(error, errors.ConfigurationError | errors.InvalidURI | ValueError | TypeError):
            return f"the address can't be used ({said}); check SACRED_HOST or SACRED_MONGO_URL"
        if isinstance(error, errors.ConnectionFailure | errors.ExecutionTimeout) or getattr(error, "timeout", False):
            return f"it can't be reached ({said}); check the address, the network and the firewall"
        return f"{type(error).__name__}: {said}"

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _said(error: Exception) -> str:
    """The error in a line, without the topology that pymongo appends."""
    text = str(error).partition(", Timeout:")[0].partition(", full error")[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def typed_address(argument: str) -> Address:
    """The address in Sacred's flag `-m [HOST:PORT:]DATABASE[.COLLECTION]`."""
    try:
        found = parse_mongo_db_arg(argument)
    except (ValueError, AttributeError):  # the second: nothing matched its pattern
        # What was typed may hold a password, and so may the error.
        raise UserError(
            "-m: expected HOST:PORT:DATABASE or DATABASE; a whole address, with a user and a password, goes into "
            "SACRED_MONGO_URL"
        ) from None
    return Address(
        f"mongodb://{found.get('url', 'localhost:27017')}", found["db_name"], found.get("collection", "runs")
    )


def address(environ: Mapping[str, str]) -> Address | None:
    """The address in the `SACRED_…` variables; `None` where none is set.

    SACRED_MONGO_URL is a whole one. Else a bare SACRED_HOST is a cluster's DNS name (mongodb+srv); `host:port`, or
    several of them with commas between, are servers; user and password may both be missing. Raises `UserError`
    where something else is.
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
    behind = re.split("[/?]", url.partition("://")[2], maxsplit=1)[1:]
    if "@" in "".join(behind):  # else part of a password would pass for an option, which pymongo names
        raise UserError(
            "SACRED_MONGO_URL: there is an @ behind the servers; in user and password write / as %2F, ? as %3F and @ as %40, "
            "in options @ as %40"
        )
    in_path = url.partition("://")[2].partition("/")[2].partition("?")[0]
    if not (database or in_path):
        raise UserError("SACRED_MONGO_URL names no database; append /NAME, or set SACRED_DATABASE")
    return Address(url, database or urllib.parse.unquote(in_path))
