"""Find the records of jobs: by name, in a folder of runs, an event file, a job's checkpoints, or MongoDB."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from scaling_fl import host
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from scaling_fl.tracking import events, file_record
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import Record


class Found(NamedTuple):
    records: list[Record]  # one for each job: the most recent one
    skipped: dict[str, str]  # places of damaged and foreign records, with the reason


def find(*sources: str | Path, runs: str | Path = "runs", database: Address | None = None) -> Found:
    """The records in all `sources`, and of all jobs in `database`.

    A source is the name of a job in the folder `runs`, a folder like `runs`, a folder in it, an event file, or the
    checkpoints_dir of a job, which may be a URL. Raises `UserError` if a source is none of these, or the database can't
    be reached.
    """
    jobs, skipped = dict[str, Record](), dict[str, str]()
    for source in sources:
        for place, found in _at(source, Path(runs)):
            _keep(place, found, jobs, skipped)
    if database is not None:
        entry = MongoEntry(database)
        try:
            for place, found in entry.stored():
                _keep(place, found, jobs, skipped)
        except Exception as error:  # whatever pymongo raises
            raise UserError(f"{entry.name}: {entry.explain(error)}") from error
        finally:
            entry.close()
    return Found(list(jobs.values()), skipped)


def _keep(place: str, found: Record | Exception, jobs: dict[str, Record], skipped: dict[str, str]) -> None:
    """Add a record to `jobs`, unless there is a more recent one of the same job."""
    if isinstance(found, Exception):
        reason = f"{type(found).__name__}: {found}".rstrip(": ")
    elif "job_id" not in found.info or not found.info["starts"]:
        reason = "no run has started there"
    else:
        job = found.info["job_id"]
        if job not in jobs or jobs[job].info["last_event"] < found.info["last_event"]:
            jobs[job] = found
        return
    skipped[place] = reason


def _at(source: str | Path, runs: Path) -> Iterator[tuple[str, Record | Exception]]:
    path = Path(source).expanduser()
    if path.is_file():
        yield str(path), _from_events(path.read_bytes())
    elif (path / "run.json").exists():
        yield str(path), _from_folder(path)
    elif (path / "_events").is_dir():
        yield from _in_folder(path)
    elif (runs / "_events" / f"{source}.jsonl").is_file():
        yield from _at(runs / "_events" / f"{source}.jsonl", runs)
    elif "://" in str(source) or path.is_dir():
        data = CheckpointStore(str(source)).read(events.MIRROR)
        if data is None:
            raise UserError(
                f"{source}: expected a folder of runs, a run's folder or a job's checkpoints_dir, found neither _events, "
                f"run.json nor {events.MIRROR}; correct the path"
            )
        yield f"{source}/{events.MIRROR}", _from_events(data)
    else:
        jobs = [file.stem for file in (runs / "_events").glob("*.jsonl")]
        raise UserError(
            f"{source}: there is no such job in {runs}{host.did_you_mean(str(source), jobs)}, nor such a file or folder; "
            "correct the name, or run the command in the folder where the job was started"
        )


def _in_folder(runs: Path) -> Iterator[tuple[str, Record | Exception]]:
    """The event files in `runs`, and the runs whose event file is elsewhere."""
    for path in sorted((runs / "_events").glob("*.jsonl")):
        yield str(path), _from_events(path.read_bytes())
    numbered = [path for path in runs.iterdir() if path.name.isdecimal() and path.is_dir()]
    for path in sorted(numbered, key=lambda path: int(path.name)):
        yield str(path), _from_folder(path)


def _from_events(data: bytes) -> Record | Exception:
    try:
        return Record.from_events(events.parse(data))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # not written by this program
        return error


def _from_folder(run: Path) -> Record | Exception:
    try:
        return file_record.load(run)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        return error
