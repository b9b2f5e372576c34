"""A job as the command sees it: the other nodes, the lock and lease, the records, and the attempts."""

import contextlib
import dataclasses
import itertools
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling_fl import host
from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.run import CHECKPOINTS
from scaling_fl.errors import JobFailed, NodeLost, OutOfMemory, UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event
from scaling_fl.runtime import finished, launcher
from scaling_fl.runtime.job_page import JobPage
from scaling_fl.runtime.nodes import agreement, cluster_env
from scaling_fl.runtime.nodes.control_link import SINGLE_NODE, ControlLink
from scaling_fl.tracking import events, mlflow_server, mongo_address, secret_manager, tensorboard
from scaling_fl.tracking.console import Console
from scaling_fl.tracking.destinations import Destinations
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.tracker import Tracker

RUNS = Path("runs")  # records of all runs, in the current directory
_VERTEX_AI = (  # key, its default, and the variable that names the folder on Vertex AI
    ("checkpoints_dir", CHECKPOINTS, "AIP_CHECKPOINT_DIR"),
    ("tensorboard_dir", None, "AIP_TENSORBOARD_LOG_DIR"),
)


class Job:
    """Everything that one command holds until it ends. `resources` are released then."""

    def __init__(self, resources: contextlib.ExitStack):
        self.console = Console()
        self.unobserved = False  # True: nothing is recorded
        self.destinations = Destinations([RUNS])
        self.link: ControlLink = SINGLE_NODE
        self.plan: Plan | None = None
        self._resources = resources
        self._attempt = resources.enter_context(contextlib.ExitStack())  # closed at the end of each attempt
        self._lease: Lease | None = None
        self._tracker: Tracker | None = None
        self._page: JobPage | None = None
        self._written: dict[str, str] = {}
        self._saved: int | None = None  # the round of the last checkpoint
        self._unnamed = False  # whether the command had no job_name
        self._read: finished.Files | None = None  # what the job reads, from before

    def config_of(self, values: Mapping[str, Any]) -> Config:
        """The typed configuration; the defaults of some folders are those that Vertex AI names, if any."""
        for key, default, variable in _VERTEX_AI:
            if (place := os.environ.get(variable)) and values[key] == default:
                if key == "tensorboard_dir" and not tensorboard.is_installed():
                    continue  # Vertex AI names this folder for every job
                values = {**values, key: place}
                self.console.line(f"{key}={place}, from {variable}")
        return Config.from_mapping(values)

    def begin(self, config: Config) -> Tracker | None:
        """Prepare everything that training needs; return the tracker, if the run is recorded.

        Bad input leaves no record. Exits with status 0 if the job is already finished.
        """
        self.console.verbosity = config.verbosity
        if config.job_name is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            config = dataclasses.replace(config, job_name=name)
            self._unnamed = True
        self.link = ControlLink(cluster_env.this_node(os.environ), self.console.line)
        self._resources.callback(self.link.close)
        config = agreement.agree_on_config(config, self.link)
        config = config.named(str(config.job_name))
        history = self._claim(config) if self.link.node.rank == 0 else None
        self._read = None if history is None else finished.inputs(config)
        if history is not None and self.link.node.count == 1 and (said := finished.recall(history, config, self._read)):
            self._say_finished(config, said, history)
            sys.exit(0)
        self.plan = plan = self._prepare(config)
        if plan.finished:
            models = list(final_model.folders(config, plan.round, plan.best))
            self._say_finished(config, finished.sentence(config, plan.round, models), history, plan)
            if history is not None:
                finished.remember(history, config, self._read, plan.round)
            sys.exit(0)
        if history is not None and self.plan.round == 0 and history.exists():
            self._check_recorded(self.plan, history)
        if self._lease is not None:
            self._lease.acquire()
            self._resources.callback(self._lease.release)
        if history is not None:
            self._page = JobPage(config, self.console.line)
            targets = self.destinations.targets(config, self._lease)
            self._tracker = Tracker(events.EventLog(history), self.plan, targets, self.console.line, self._page.of)
            self.console.listener = self._tracker.output
            if self._lease is not None:
                self._lease.runs = self._tracker.runs
        return self._tracker

    def train(self) -> None:
        """Train as planned. After a failure, restart up to `max_restarts` times."""
        plan = self.plan
        assert plan is not None, "`begin` made it"
        for note in plan.notes:
            self.console.line(f"note: {note}")
        if plan.config.checkpoints_dir is None and plan.node == 0:
            self.console.line("note: checkpoints_dir=None: neither checkpoints nor the final model are saved")
        self.console.plan(plan)
        for attempt in itertools.count(1):
            try:
                launcher.train(plan, self._on_event, self.link)
                if self._tracker is not None:
                    finished.remember(
                        events.path_of(RUNS, plan.config), plan.config, self._read, plan.config.num_rounds
                    )
                return
            except JobFailed as error:
                if attempt > plan.config.max_restarts or isinstance(error, NodeLost | OutOfMemory):
                    raise
                self.link.announce_end(error)
                self.link.restart()
                self.console.close()
                self.console.line(
                    f"{error}\nnote: restart {attempt} of {plan.config.max_restarts}, from the last checkpoint"
                )
                if self._tracker is not None:
                    self._tracker.restarted(str(error))
                plan = self.plan = self._prepare(plan.config)
                if plan.finished:  # it failed after the last round was saved
                    return

    def sync(self, config: Config) -> None:
        """Bring the job's records up to date from its events."""
        if config.job_name is None:
            raise UserError("sync: no job_name; add job_name=…, and checkpoints_dir=… if its events are only there")
        config = config.named(config.job_name)
        history = self._claim(config)
        if history is None or not history.exists():
            raise UserError(
                f"job_name={config.job_name}: it has no events in {RUNS}/_events; run the command where the job was "
                f"started, copy its events to {RUNS}/_events/{config.job_name}.jsonl, or add its checkpoints_dir"
            )
        if not self._bring_up_to_date(config, history):
            raise UserError(f"job_name={config.job_name}: some of its records are not up to date; try again later")

    def failed(self, error: JobFailed) -> None:
        """Append the failure to the recorded output, which Sacred's own message doesn't reach, and name the records."""
        if self._tracker is not None:
            self.print_written()
            self._tracker.output(str(error))

    def print_written(self) -> None:
        """Print the places of everything that was written, by kind."""
        records = self._tracker.locations() if self._tracker is not None else {}
        if self._page is not None and (location := self._page.location(records)):
            self._written["report"] = location
        for what, where in (self._written | records).items():
            self.console.line(f"{what:<12} {where}")

    def after_interrupt(self) -> str:
        """What an interrupted job has saved, and how to resume it; the end of a message."""
        if self.plan is None or self.plan.node > 0:  # node 0 says it
            return ""
        config, round_ = self.plan.config, self.plan.round if self._saved is None else self._saved
        if config.checkpoints_dir is None:
            return "; nothing is saved, because of checkpoints_dir=None"
        if round_ == 0:
            return f"; no round is saved in {config.checkpoints_dir}: run the same command again to start over"
        more = f" with job_name={config.job_name}" if self._unnamed else ""
        return f"; round {round_} is saved in {config.checkpoints_dir}: run the same command again{more} to resume"

    def _claim(self, config: Config) -> Path | None:
        """Make sure that no other run of this job is in progress; return its event file, if the run is recorded."""
        if not self.unobserved:
            environ = secret_manager.resolved(os.environ)
            if address := mongo_address.from_environment(environ):
                self.destinations.addresses.insert(0, address)
            self.destinations.mlflow = mlflow_server.from_environment(environ)
        recorded = self.destinations.file_records(events.path_of(RUNS, config))
        checkpoints = None if config.checkpoints_dir is None else CheckpointStore(config.checkpoints_dir)
        folder = None if checkpoints is None else checkpoints.url
        self._resources.enter_context(host.job_lock(str(config.job_name), folder, recorded))
        if checkpoints is not None:
            self._lease = Lease(checkpoints, str(config.job_name))
            self._lease.wait_until_free(self.console.line)
        if self.unobserved:
            return None
        history = events.merge_mirror(RUNS, config)
        self.destinations.check(config, history, self.console.line)
        return history

    def _prepare(self, config: Config) -> Plan:
        self._attempt.close()  # the previous attempt
        folder = self._attempt.enter_context(host.work_folder())
        return launcher.prepare(config, folder, self.console.event, self.link)

    def _say_finished(self, config: Config, said: str, history: Path | None, plan: Plan | None = None) -> None:
        self.console.line(said)
        if history is not None and history.exists():
            self._bring_up_to_date(config, history, plan)

    def _bring_up_to_date(self, config: Config, history: Path, finished: Plan | None = None) -> bool:
        attach = JobPage(config, self.console.line, reuse=True).of
        return self.destinations.bring_up_to_date(config, history, self.console.line, finished, attach)

    def _check_recorded(self, plan: Plan, history: Path) -> None:
        """Without a checkpoint to resume from, raise `UserError` if a new start would overwrite recorded rounds.

        Exits with status 0 if the job is finished and keeps no checkpoints.
        """
        config, recorded = plan.config, events.read(history)[0]
        done = max(events.rounds_of(recorded), default=0)
        if done == 0:
            return
        record = Record.from_events(recorded)
        compatibility.check_config(config, record.config)
        compatibility.check_data(config, str(record.info["data_digest"]), plan.data_digest)
        if record.entry["status"] == "COMPLETED":
            said = f"{finished.rounds_done(done)} and recorded, but there is no checkpoint; to train again, use another job_name"
            if config.checkpoints_dir not in (None, Config().named(str(config.job_name)).checkpoints_dir):
                # The user expects the model there.
                raise UserError(f"checkpoints_dir={config.checkpoints_dir}: job {config.job_name} is finished: {said}")
            if config.num_rounds > done or self.link.node.count > 1:  # other nodes can't see the record
                raise UserError(f"job_name={config.job_name}: {said}")
            self.console.line(f"job {config.job_name} is finished: {said}")
            self._bring_up_to_date(config, history)
            sys.exit(0)

    def _on_event(self, event: Event) -> None:
        assert self.plan is not None
        if self._lease is not None:
            self._lease.ensure_held()
        if self._tracker is not None:
            self._tracker.event(event)
        if event["event"] in ("checkpoint", "model"):
            self._written["best model" if event["path"].endswith("/model-best") else event["event"]] = event["path"]
        if event["event"] == "checkpoint":
            self._saved = event["round"]
        self.console.event(event, self.plan)
