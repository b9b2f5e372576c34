"""Where a job is recorded besides its event file: the folders and databases from flags and environment."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking import events, mlflow_server, mongo
from scaling_fl.tracking.file_record import FileRecord, find
from scaling_fl.tracking.mlflow_run import MlflowRun
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.replay import Attach, Mirror, Replay, Target, nothing
from scaling_fl.tracking.tensorboard import TensorBoardLog


@dataclass
class Destinations:
    """Folders for Sacred's file record, MongoDB databases, and an MLflow server."""

    folders: list[Path]
    addresses: list[Address] = field(default_factory=list)
    mlflow: mlflow_server.Server | None = None

    def targets(self, config: Config, lease: Lease | None = None) -> list[Target]:
        """The targets of one job, including the copy of its events beside the checkpoints, guarded by the lease."""
        targets: list[Target] = [FileRecord(folder) for folder in self.folders]
        targets += [mongo.MongoEntry(address) for address in self.addresses]
        if config.tensorboard_dir is not None:
            targets.append(TensorBoardLog(config.tensorboard_dir, str(config.job_name)))
        if self.mlflow is not None:
            targets.append(MlflowRun(self.mlflow, str(config.job_name)))
        if config.checkpoints_dir is not None:
            targets.append(Mirror(CheckpointStore(config.checkpoints_dir), lease))
        return targets

    def file_records(self, history: Path) -> str:
        """The folders of the job's file records, for messages; empty if there are none."""
        job_id = events.job_id(history)
        found = [find(folder, job_id) for folder in self.folders] if job_id else []
        return ", ".join(str(run) for run in found if run is not None)

    def check(self, config: Config, history: Path, say: Callable[[str], None]) -> None:
        """Raises `UserError` if a folder isn't writable, or a database has another job of this name.

        Prints a note about a database or a server that fails for any other reason. Leaves no trace.
        """
        for folder in self.folders:
            events.check_writable(folder)
        if config.tensorboard_dir is not None:
            TensorBoardLog(config.tensorboard_dir, str(config.job_name)).check()
        for address in self.addresses:
            entry = mongo.MongoEntry(address)
            try:
                entry.check(str(config.job_name), events.job_id(history))
            except UserError:
                raise
            except Exception as error:  # whatever pymongo raises: no database may stop a job
                say(_later(entry, error))
            finally:
                entry.close()
        if self.mlflow is not None:
            run = MlflowRun(self.mlflow, str(config.job_name))
            try:
                run.check()
            except Exception as error:  # whatever requests raises
                say(_later(run, error))

    def bring_up_to_date(
        self,
        config: Config,
        history: Path,
        say: Callable[[str], None],
        finished: Plan | None = None,
        attach: Attach = nothing,
    ) -> bool:
        """Replay the events of a job that isn't running into all of its records. Returns whether all are up to date.

        `finished`: the plan, if no rounds are left.
        """
        log = events.EventLog(history)  # appends the missing end of a killed run
        if finished is not None and log.end != "completed":  # killed before it could append its last events
            log.restore(finished.history)
            for name in final_model.folders(config, finished.round, finished.best):
                log.append("model", path=CheckpointStore(str(config.checkpoints_dir)).url_of(name))
            log.append("completed")
        log.close()
        replays = [Replay(history, target, attach) for target in self.targets(config)]
        for replay in replays:
            replay.step()
            if replay.trouble is not None:
                say(replay.describe_trouble())
            elif replay.target.title:
                say(f"{replay.target.title:<12} {replay.target.location()}")
        return all(replay.trouble is None for replay in replays)


def _later(target: Target, error: Exception) -> str:
    return f"note: {target.name}: {target.explain(error)}; the job will be recorded there once that is fixed"
