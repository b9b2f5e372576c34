"""What is recorded of a run: the event file, Sacred's file record, and MongoDB. Only this module knows of MongoDB."""

import json
import socket
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sacred.observers import FileStorageObserver, MongoObserver, RunObserver
from sacred.observers.mongo import parse_mongo_db_arg
from sacred.run import Run

from scaling_fl.checkpoint import Checkpoints
from scaling_fl.config import Config
from scaling_fl.errors import UserError
from scaling_fl.plan import Event, Plan

MONGO_VARIABLES = ("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST")
_MONGO_TIMEOUT_MS = 5000  # to find the server; pymongo's own is 30 s


class MongoAddress(NamedTuple):
    options: dict[str, Any]  # of Sacred's observer; the URL may hold a password: never shown
    shown: str


class EventLog:
    """The append-only file of what happened to a job: one JSON object per line, the truth behind all records."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a")  # noqa: SIM115 (open for the job's life)

    def append(self, event: str, **fields: Any) -> None:
        """Add one event; `fields` are plain values. It is on its way to the disk when this returns."""
        line = json.dumps({"time": round(time.time(), 3), "event": event} | fields, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def event_log(runs: Path, config: Config) -> EventLog:
    """The job's event file in `runs`, which goes on from the copy beside the checkpoints on a disk that is new to it.

    Raises `UserError` where it can't be written.
    """
    path = runs / "_events" / f"{config.job_name}.jsonl"
    if config.checkpoints_dir is not None:
        Checkpoints(config.checkpoints_dir).fetch_if_longer("events.jsonl", path)
    try:
        return EventLog(path)
    except OSError as error:
        raise UserError(
            f"{path}: it can't be written ({error.strerror}); type the command in a folder of yours, or give -u for no record"
        ) from error


class Tracker:
    """Records a run's events: in the event file, and as Sacred's metrics, info and captured output."""

    def __init__(self, run: Run, log: EventLog | None, plan: Plan, warn: Callable[[str], None]):
        self._run, self._log, self._plan, self._warn = run, log, plan, warn
        self._written: dict[str, str] = {}
        table = [
            {"site": site, "examples": size, "label_entropy_bits": round(entropy, 6), "device": plan.devices[site]}
            for site, (size, entropy) in enumerate(zip(plan.shard_sizes, plan.shard_entropies, strict=True))
        ]
        run.info |= {
            "job_name": plan.config.job_name,
            "resumed_after_round": plan.round,
            "shards": table,
            "label_names": list(plan.label_names),
            "threads_per_site": plan.threads,
            "num_parameters": plan.num_parameters,
            "data_digest": plan.data_digest,
            "environment": dict(plan.environment),
            "files": self._written,
        }
        self._append(
            "started",
            run_id=None if run._id is None else str(run._id),
            host=socket.gethostname(),
            after_round=plan.round,
            config=plan.config.to_mapping(),
            threads=plan.threads,
            data_digest=plan.data_digest,
            environment=dict(plan.environment),
        )
        self._append("shards", shards=table)

    def event(self, event: Event) -> None:
        """Record what a worker reports."""
        match event["event"]:
            case "round":
                self._append("round", round=event["round"], metrics=event["metrics"])
                for name, value in event["metrics"].items():
                    self._run.log_scalar(name, float(value), event["round"])  # non-finite values come as text
            case "checkpoint":
                self._append("checkpoint", round=event["round"], path=event["path"], seconds=event["seconds"])
                self._run.log_scalar("seconds.checkpoint", event["seconds"], event["round"])
                self._written["checkpoint"] = event["path"]
                self._mirror()
            case "model":
                self._append("model", path=event["path"])
                self._written["model"] = event["path"]
            case "output":
                self._append("output", source=event["source"], text=event["text"])

    def end(self, how: str, reason: str = "") -> None:
        """Record the end: "completed", "failed" or "interrupted"."""
        self._append(how, reason=reason)
        self._mirror()
        if how != "completed":
            self._run._emit_heartbeat()  # else Sacred drops what was captured since the last beat

    def written(self) -> list[tuple[str, str]]:
        """What was written where, for the user."""
        places = list(self._written.items())
        if self._log is not None:
            places.append(("events", str(self._log.path)))
        for observer in self._run.observers:
            if isinstance(observer, FileStorageObserver):
                places.append(("run record", str(observer.dir)))
            elif isinstance(observer, MongoObserver):
                places.append(("MongoDB", f"run {self._run._id} in database {observer.runs.database.name}"))
        return places

    def _append(self, event: str, **fields: Any) -> None:
        if self._log is not None:
            self._log.append(event, **fields)

    def _mirror(self) -> None:
        """Copy the event file beside the checkpoints: a preempted container loses its disk."""
        if self._log is None or self._plan.config.checkpoints_dir is None:
            return
        try:
            Checkpoints(self._plan.config.checkpoints_dir).put_file(self._log.path, "events.jsonl")
        except Exception as error:  # no reason to end a job: the next copy holds all of it
            self._warn(f"note: the events could not be copied beside the checkpoints: {type(error).__name__}: {error}")


class FileRecord(FileStorageObserver):  # type: ignore[misc]
    """Sacred's file record with its own numbering: MongoDB's number may be taken in this folder."""

    def started_event(self, *args: Any, _id: Any, **kwargs: Any) -> Any:
        own = super().started_event(*args, _id=None, **kwargs)
        return own if _id is None else _id


def observers(
    folders: Sequence[Path | str], mongo_addresses: Sequence[MongoAddress], warn: Callable[[str], None]
) -> list[RunObserver]:
    """Sacred's observers: a file record in each folder, and each MongoDB that answers."""
    found: list[RunObserver] = [FileRecord(folder) for folder in folders]
    for address in mongo_addresses:
        try:
            mongo = MongoObserver(
                **address.options,
                failure_dir=str(folders[0]),  # where Sacred leaves what it could not send at the end
                serverSelectionTimeoutMS=_MONGO_TIMEOUT_MS,
                connectTimeoutMS=_MONGO_TIMEOUT_MS,
            )
            mongo.runs.database.client.admin.command("ping")
            found.append(mongo)
        except Exception as error:  # pymongo has many; none may stop the run, none may show the password
            warn(
                f"MongoDB at {address.shown} can't be used ({type(error).__name__}): this run is recorded in "
                f"{', '.join(map(str, folders))} only; check the address and the credentials"
            )
    return found


def typed_address(argument: str) -> MongoAddress:
    """The address in Sacred's flag `-m [HOST:PORT:]DATABASE[.COLLECTION]`."""
    try:
        return MongoAddress(parse_mongo_db_arg(argument), shown=argument)
    except (ValueError, AttributeError) as error:  # the second: nothing matched its pattern
        raise UserError(f"-m {argument}: expected HOST:PORT:DATABASE or DATABASE") from error


def mongo_address(environ: Mapping[str, str]) -> MongoAddress | None:
    """The address in the `SACRED_…` variables; `None` where none is set.

    A bare host name is a cluster's DNS name (mongodb+srv); `host:port`, or several of them with commas between,
    are servers. User and password may both be missing. Raises `UserError` where something else is.
    """
    user, password, database, host = (environ.get(name, "").strip() for name in MONGO_VARIABLES)
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
    url = f"{scheme}://{account}{host}/?retryWrites=true&w=majority"
    return MongoAddress({"url": url, "db_name": database}, shown=host)
