"""Where a job is recorded besides its event file: what was typed and what the environment says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import Checkpoints
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking import events, mongo
from scaling_fl.tracking.file_record import FileRecord, find
from scaling_fl.tracking.replay import Mirror, Replay, Target


@dataclass
class Destinations:
    """Folders for Sacred's file record, and MongoDB servers."""

    folders: list[Path]
    addresses: list[mongo.Address] = field(default_factory=list)

    def targets(self, config: Config, lease: Lease | None = None) -> list[Target]:
        """All of them for one job, and the copy of the events beside its checkpoints, while the lease on them is held."""
        targets: list[Target] = [FileRecord(folder) for folder in self.folders]
        targets += [mongo.MongoEntry(address) for address in self.addresses]
        if config.checkpoints_dir is not None:
            targets.append(Mirror(Checkpoints(config.checkpoints_dir), lease))
        return targets

    def file_records(self, history: Path) -> str:
        """The job's records in files, for the user; empty where there is none."""
        job_id = events.job_id(history)
        found = [find(folder, job_id) for folder in self.folders] if job_id else []
        return ", ".join(str(run) for run in found if run is not None)

    def check(self, config: Config, history: Path, say: Callable[[str], None]) -> None:
        """Raises `UserError` where a folder can't be written, or a database knows another job of this name.

        A database that can't be asked is told of. Nothing is written.
        """
        for folder in self.folders:
            events.check_writable(folder)
        for address in self.addresses:
            entry = mongo.MongoEntry(address)
            try:
                entry.check(str(config.job_name), events.job_id(history))
            except UserError:
                raise
            except Exception as error:  # pymongo's, and those of what answers there; none may stop a job
                say(f"note: {entry.name}: {entry.explain(error)}; the job is recorded there once that is mended")
            finally:
                entry.close()

    def bring_up_to_date(
        self, config: Config, history: Path, say: Callable[[str], None], finished: Plan | None = None
    ) -> bool:
        """Replay a job that doesn't run into all of its records, once. Returns whether all of them have all.

        `finished`: its plan, if nothing is left to do.
        """
        log = events.EventLog(history)  # the end of a killed run is appended
        if finished is not None and log.end != "completed":  # all was done, and not all was heard of
            log.restore(finished.history)
            if config.has_global_model:
                log.append("model", path=f"{str(config.checkpoints_dir).rstrip('/')}/model")
            log.append("completed")
        log.close()
        replays = [Replay(history, target) for target in self.targets(config)]
        for replay in replays:
            replay.step()
            if replay.trouble is not None:
                say(replay.describe_trouble())
            elif replay.target.title:
                say(f"{replay.target.title:<12} {replay.target.location()}")
        return all(replay.trouble is None for replay in replays)
