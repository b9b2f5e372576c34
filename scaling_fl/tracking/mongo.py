"""Sacred's entry in MongoDB, in the layout of its MongoObserver: `runs`, `metrics`, files in GridFS.

No other module imports pymongo.
"""

import datetime
import hashlib
import random
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bson
import gridfs
import pymongo
from pymongo import errors

from scaling_fl.errors import UserError
from scaling_fl.progress import Event
from scaling_fl.tracking import events as event_file
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import OUTPUT_END, Record, is_part

_FIND_SERVER_MS = 5000  # pymongo's default is 30 s
_CONNECT_MS = 2500  # shorter, so that the error names the cause
_ANSWER_MS = 20000  # limit for one operation; pymongo has none by default


class MongoEntry:
    """The job's document in `runs`, its metrics and its files."""

    throttled = True

    def __init__(self, address: Address):
        self.address, self.name, self.title = address, f"MongoDB at {address.hosts}", "MongoDB"
        self._client: pymongo.MongoClient[dict[str, Any]] | None = None
        self._id: int | None = None

    def open(self, job_id: str) -> float:
        runs = self._database()[self.address.collection]
        entry = runs.find_one({"info.job_id": job_id}, {"info": 1})
        if entry is None:
            while True:
                # Sacred also allows ids that are not numbers.
                newest = runs.find_one({"_id": {"$gte": 0}}, {"_id": 1}, sort=[("_id", -1)])
                self._id = 1 + int(newest["_id"] if newest else 0)
                try:
                    runs.insert_one({"_id": self._id, "info": {"job_id": job_id}, "status": "RUNNING"})
                    break
                except errors.DuplicateKeyError:  # another job took it
                    time.sleep(random.random())
            return 0.0
        self._id = entry["_id"]
        return float(entry["info"].get("last_event", 0.0))

    def check(self, job_name: str, job_id: str | None) -> None:
        """Raises `UserError` if another job in the database has this name, and whatever pymongo raises."""
        runs = self._database()[self.address.collection]
        query = {"config.job_name": job_name, "command": {"$exists": True}}
        found = list(runs.find(query, {"info": 1, "host": 1, "status": 1}, sort=[("_id", 1)]))
        ours = [entry for entry in found if job_id and entry.get("info", {}).get("job_id") == job_id]
        if found and found != ours[:1]:
            listed = ", ".join(
                f"{entry['_id']} ({entry.get('status', '?')}, {entry.get('host', {}).get('hostname', '?')})"
                for entry in found
            )
            remedy = "choose another job_name, or remove all but one" if ours else (
                "to resume it, use its checkpoints_dir, or the folder where it was started; else choose another job_name"
            )  # fmt: skip
            raise UserError(
                f"job_name={job_name}: {self.name} already has a job of this name, in run {listed}; {remedy}"
            )

    def write(self, record: Record, events: list[Event], path: Path) -> None:
        database, kinds = self._database(), {event["event"] for event in events}
        whole = "created" in kinds
        entry = dict(record.entry)
        experiment = entry.pop("experiment", {})
        if whole or "output" in kinds:
            entry["captured_out"] = record.output
        if whole or "started" in kinds:
            entry["experiment"] = experiment | {"sources": self._store_sources(record.sources)}
            entry |= {"format": "MongoObserver-0.7.0", "config": record.config}
        if not kinds <= {"output"}:
            changed = None if whole or "started" in kinds else {event["round"] for event in events if "round" in event}
            entry["info"] = record.info | {"metrics": self._write_metrics(record, changed)}
        if whole or kinds & {"shards", *event_file.ENDS}:
            entry["artifacts"] = self._artifacts(record, path)
        database[self.address.collection].update_one({"_id": self._id}, {"$set": entry})

    def stored(self) -> Iterator[tuple[str, Record | Exception]]:
        """All of this program's entries in the database, with their titles; an error for one that can't be read."""
        database = self._database()
        files = gridfs.GridFS(database)
        for entry in database[self.address.collection].find({"info.job_id": {"$exists": True}}, sort=[("_id", 1)]):
            title = f"run {entry['_id']} in database {self.address.database}"
            try:
                metrics = {found["name"]: found for found in database["metrics"].find({"run_id": entry["_id"]})}
                wanted = [file for file in entry.get("artifacts", ()) if is_part(file["name"])]
                artifacts = {file["name"]: files.get(file["file_id"]).read() for file in wanted}
                artifacts["cout.txt"] = str(entry.get("captured_out", "")).encode()
                yield title, Record.from_parts(entry["config"], entry["info"], entry, metrics, artifacts)
            except (KeyError, TypeError, ValueError, gridfs.NoFile) as error:
                yield title, error

    def _write_metrics(self, record: Record, changed: set[int] | None) -> list[dict[str, str]]:
        """Update the documents of metrics with values in the rounds `changed` (`None`: of all); returns names and ids."""
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
        return [{"name": name, "file_id": self._store(f"{prefix}/{name}", data)} for name, data in files.items()]

    def _store_sources(self, sources: dict[str, str]) -> list[list[Any]]:
        """Store the sources that aren't there yet; returns names and ids.

        Three operations for all of them: GridFS's own `put` needs six for each file, and a program has hundreds.
        """
        database = self._database()
        contents = {name: text.encode() for name, text in sources.items()}
        digests = {name: hashlib.md5(content).hexdigest() for name, content in contents.items()}
        found = database["fs.files"].find(
            {"metadata.md5": {"$in": list(digests.values())}}, {"filename": 1, "metadata": 1}
        )
        ids = {(file["filename"], file["metadata"]["md5"]): file["_id"] for file in found}
        files, chunks = [], []
        for name, content in contents.items():
            if (name, digests[name]) in ids:
                continue
            new = ids[name, digests[name]] = bson.ObjectId()
            files.append({
                "_id": new, "filename": name, "metadata": {"md5": digests[name]}, "chunkSize": gridfs.DEFAULT_CHUNK_SIZE,
                "length": len(content), "uploadDate": datetime.datetime.now(datetime.UTC),
            })  # fmt: skip
            for n, start in enumerate(range(0, len(content), gridfs.DEFAULT_CHUNK_SIZE)):
                data = content[start : start + gridfs.DEFAULT_CHUNK_SIZE]
                chunks.append({"files_id": new, "n": n, "data": data})
        if chunks:
            database["fs.chunks"].insert_many(chunks)
        if files:  # last: a file without its chunks can't be read
            database["fs.files"].insert_many(files)
        return [[name, ids[name, digest]] for name, digest in digests.items()]

    def _store(self, name: str, content: bytes) -> Any:
        """Store this content under this name, unless it is there; returns its id. An artifact's old content is removed."""
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
        cause = self.address.without_password(_summary(error))
        code = error.code if isinstance(error, errors.OperationFailure) else None
        if code in (18, 8000):
            return f"it rejects the user or the password ({cause}); check SACRED_USER and SACRED_PASSWORD"
        if code in (13, 33):
            return (
                f"the user lacks permission in database {self.address.database} ({cause}); ask for the role readWrite"
            )
        if any(isinstance(link, ssl.SSLError) for link in _causes(error)) or re.search(r"SSL|certificate", cause):
            return (
                f"TLS failed ({cause}); check that the server uses TLS, and its certificate (tls… in SACRED_MONGO_URL)"
            )
        if isinstance(error, errors.ConfigurationError | errors.InvalidURI | ValueError | TypeError):
            return f"the address can't be used ({cause}); check SACRED_HOST or SACRED_MONGO_URL"
        if isinstance(error, errors.ConnectionFailure | errors.ExecutionTimeout) or getattr(error, "timeout", False):
            return f"it can't be reached ({cause}); check the address, the network and the firewall"
        return f"{type(error).__name__}: {cause}"

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


def _summary(error: Exception) -> str:
    """The error in one line, without the topology that pymongo appends."""
    text = str(error).partition(", Timeout:")[0].partition(", full error")[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
