#!/usr/bin/env python
"""Fine-tune a language model federatedly: N sites, one model, no shared data.

    ./run-local.sh scripts/train_federated.py with demo
    ./run-local.sh scripts/train_federated.py show_task with task_name=imdb
    ./run-local.sh scripts/train_federated.py show_shards with demo partition=dirichlet alpha=0.1 num_sites=32
    ./run-local.sh scripts/train_federated.py with site_ids=[0,0,1,1] num_rounds=100 model=distilbert \
        task_name=agnews train_path=train.csv test_path=test.csv job_name=news checkpoints_dir=checkpoints

README.md explains every key. This file only assembles: Sacred's configuration in, preparation, rounds, record.
"""

import contextlib
import dataclasses
import itertools
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dotenv

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script runs from any folder, installed or not

from scaling_fl import launch  # noqa: E402

if __name__ == "__main__":
    dotenv.load_dotenv(ROOT / ".env", interpolate=False)  # as Docker Compose reads it: .env.template
    if "with" in sys.argv and not {"print_config", "sync"} & set(sys.argv):
        launch.begin()  # torch is imported there while Sacred is imported here

from sacred import SETTINGS, Experiment  # noqa: E402
from sacred.config import load_config_file  # noqa: E402
from sacred.run import Run  # noqa: E402
from sacred.utils import SacredError  # noqa: E402

from scaling_fl import machine, nodes, signals, team  # noqa: E402
from scaling_fl.checkpoint import Checkpoints  # noqa: E402
from scaling_fl.command_line import NAMED_CONFIGS, keep_text  # noqa: E402
from scaling_fl.config import Config  # noqa: E402
from scaling_fl.console import Console  # noqa: E402
from scaling_fl.errors import JobFailed, NodeLost, UserError  # noqa: E402
from scaling_fl.lease import Lease  # noqa: E402
from scaling_fl.link import ALONE, Link  # noqa: E402
from scaling_fl.plan import Event, Plan  # noqa: E402
from scaling_fl.tracking import events, mongo, secret_manager  # noqa: E402
from scaling_fl.tracking.places import Places  # noqa: E402
from scaling_fl.tracking.tracker import Tracker  # noqa: E402

RUNS = Path("runs")  # records of all runs, in the folder where the command is typed


def _has_git_commit() -> bool:
    """Whether Sacred can record the commit. It would crash without git, in a copy, or before the first commit."""
    try:
        import git

        return bool(git.Repo(ROOT).head.commit.hexsha)
    except Exception:  # git missing, no repository, no commit, a repository of another user: each its own
        return False


SETTINGS.CAPTURE_MODE = "sys"  # "fd" deadlocks with child processes
experiment = Experiment("scaling_fl", base_dir=str(ROOT), save_git_info=_has_git_commit())
experiment.add_config(Config().to_mapping())
for _name, _values in NAMED_CONFIGS.items():
    experiment.add_named_config(_name, _values)


class Session:
    """What one invocation holds between Sacred's hooks and the command itself."""

    def __init__(self, resources: contextlib.ExitStack):
        self.resources = resources
        self.work = resources.enter_context(contextlib.ExitStack())  # what lasts as long as an attempt
        self.console = Console()
        self.unobserved = False
        self.places = Places([RUNS])
        self.plan: Plan | None = None
        self.lease: Lease | None = None
        self.link: Link = ALONE
        self.tracker: Tracker | None = None
        self.written: dict[str, str] = {}  # what is where, for the user


session: Session  # set by `main`


class _SaidInFull(SacredError):
    """Sacred prints the message alone, unless --debug asks for a traceback."""

    def __init__(self, error: Exception):
        super().__init__(str(error), print_traceback=False)


class Refused(_SaidInFull):
    """Something that the user can mend."""


class Failed(_SaidInFull):
    """A process of the job failed; the message holds its traceback, or its likely cause."""


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        session.link.end_with(error)
        raise Refused(error) from error
    except JobFailed as error:
        session.link.end_with(error)
        raise Failed(error) from error
    except KeyboardInterrupt as error:
        session.link.end_with(error)
        raise
    finally:
        session.console.close()  # before Sacred prints the error


def _check_config_file(word: str) -> None:
    """Sacred takes a word without = for a named configuration or a file, and fails obscurely where it is neither."""
    if not os.path.exists(word):
        raise UserError(
            f"{word}: it is neither key=value, nor a named configuration ({', '.join(NAMED_CONFIGS)}), nor a file"
        )
    if word.endswith(".pickle"):
        raise UserError(f"{word}: a pickle may run anything; write the configuration as JSON or YAML")
    try:
        values = load_config_file(word)
    except Exception as error:  # each file format has its own
        raise UserError(f"{word}: it can't be read as a configuration: {type(error).__name__}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{word}: expected keys and values, found {type(values).__name__}")


@experiment.option_hook
def remember_options(options: dict[str, Any]) -> None:
    for word in options["UPDATE"] or []:
        if "=" not in word and word not in NAMED_CONFIGS:
            with _clear_errors():
                _check_config_file(word)
    with _clear_errors():
        if options["--queue"]:
            raise UserError("-q: there is nothing that would start a queued run; leave it out")
        session.unobserved = bool(options["--unobserved"])
        # Sacred's own observers of these would begin a new run each time, and wait a minute for a server.
        if folder := options["--file_storage"]:
            session.places.folders.append(Path(folder))
        if typed := options["--mongo_db"]:
            session.places.addresses.append(mongo.typed_address(typed))
    options["--file_storage"] = options["--mongo_db"] = None


@experiment.config_hook
def prepare(config: dict[str, Any], command_name: str, logger: Any) -> dict[str, Any]:
    """Validate, and prepare all that training needs, before Sacred starts a run: bad input leaves no record."""
    with _clear_errors():
        checked = _config_of(config)
        if command_name != train.__name__:
            return {}
        if checked.job_name is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            checked = dataclasses.replace(checked, job_name=name)
        session.link = Link(nodes.this(os.environ), session.console.line)
        session.resources.callback(session.link.close)
        checked = team.agree(checked, session.link)
        history = _alone(checked) if session.link.node.rank == 0 else None
        plan = session.plan = _prepared(checked)
        if plan.finished:
            folder = str(checked.checkpoints_dir or "node 0's checkpoints_dir").rstrip("/")
            model = f"the model is in {folder}/model" if checked.has_global_model else f"checkpoints are in {folder}"
            session.console.line(
                f"job {checked.job_name} is finished: {plan.round} rounds are done, and {model}; for more rounds, raise "
                "num_rounds"
            )
            if history is not None and history.exists():
                session.places.bring_up_to_date(checked, history, session.console.line, finished=plan)
            sys.exit(0)
        if session.lease is not None:
            session.lease.take()
            session.resources.callback(session.lease.release)
        if history is not None:
            log = events.EventLog(history)
            session.tracker = Tracker(log, plan, session.places.targets(checked, session.lease), session.console.line)
            session.console.listener = session.tracker.output
            if session.lease is not None:
                session.lease.runs = session.tracker.runs
            experiment.observers.append(session.tracker)
    return {}


def _config_of(values: dict[str, Any]) -> Config:
    """What was typed, and where Vertex AI wants the checkpoints, unless that was typed."""
    place = os.environ.get("AIP_CHECKPOINT_DIR")
    if place and values["checkpoints_dir"] is None:
        values = values | {"checkpoints_dir": place}
        session.console.line(f"checkpoints_dir={place}, which is AIP_CHECKPOINT_DIR")
    return Config.from_mapping(values)


def _alone(config: Config) -> Path | None:
    """Make sure that no other run has this job; its event file, if the run is recorded."""
    if not session.unobserved and (address := mongo.address(secret_manager.resolved(os.environ))):
        session.places.addresses.insert(0, address)
    recorded = session.places.known(events.file_of(RUNS, config))
    session.resources.enter_context(machine.only_run_of(str(config.job_name), config.checkpoints_dir, recorded))
    if config.checkpoints_dir is not None:
        session.lease = Lease(Checkpoints(config.checkpoints_dir), str(config.job_name))
        session.lease.check(session.console.line)
    if session.unobserved:
        return None
    history = events.history(RUNS, config)
    session.places.check(config, history, session.console.line)
    return history


def _prepared(config: Config) -> Plan:
    session.work.close()  # of the attempt before
    folder = session.work.enter_context(machine.work_folder())
    return launch.prepare(config, folder, session.console.event, session.link)


@experiment.main
def train(_run: Run) -> None:
    """Train: rounds of local training, federated averaging and evaluation."""
    plan, console, tracker = session.plan, session.console, session.tracker
    assert plan is not None
    for note in plan.notes:
        console.line(f"note: {note}")
    console.plan(plan)

    def on_event(event: Event) -> None:
        if session.lease is not None:
            session.lease.confirm()
        if tracker is not None:
            tracker.event(event)
        if event["event"] in ("checkpoint", "model"):
            session.written[event["event"]] = event["path"]
        console.event(event, plan)

    with _clear_errors():
        for attempt in itertools.count(1):
            try:
                launch.train(plan, on_event, session.link)
                break
            except JobFailed as error:
                if attempt > plan.config.max_restarts or isinstance(error, NodeLost):
                    raise
                session.link.end_with(error)
                session.link.again()
                console.close()
                console.line(
                    f"{error}\nnote: restart {attempt} of {plan.config.max_restarts}, from the last checkpoint"
                )
                if tracker is not None:
                    tracker.restarted(str(error))
                plan = _prepared(plan.config)
                if plan.finished:  # it failed when all was done
                    break


@experiment.command(unobserved=True)
def sync(_config: dict[str, Any]) -> None:
    """Bring a job's records up to date from its events: runs/_events/JOB.jsonl, or those in checkpoints_dir."""
    with _clear_errors():
        config = _config_of(_config)
        if config.job_name is None:
            raise UserError("sync: which job? Write job_name=…, and checkpoints_dir=… if its events are only there")
        history = _alone(config)
        if history is None or not history.exists():
            raise UserError(
                f"job_name={config.job_name}: it has no events in {RUNS}/_events; type the command where the job was "
                f"begun, copy its events to {RUNS}/_events/{config.job_name}.jsonl, or give its checkpoints_dir"
            )
        if not session.places.bring_up_to_date(config, history, session.console.line):
            raise UserError(f"job_name={config.job_name}: not all of its records are up to date; try again later")


@experiment.command(unobserved=True)
def show_task(_config: dict[str, Any]) -> None:
    """What the task yields: rows, labels, lengths in tokens, duplicates, examples. Nothing is trained or written."""
    _show("scaling_fl.preview:show", "the preview", _config)


@experiment.command(unobserved=True)
def show_shards(_config: dict[str, Any]) -> None:
    """Who would hold what: sites × labels, as a table and as a picture. Nothing is trained or written."""
    _show("scaling_fl.show_shards:show", "the table of shards", _config)


def _show(target: str, name: str, config: dict[str, Any]) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may have seen enough
    with _clear_errors(), machine.work_folder() as folder:
        launch.run(target, [(Config.from_mapping(config),)], [name], folder, session.console.event)


def main(argv: list[str]) -> None:
    global session
    signals.install()
    with contextlib.ExitStack() as resources:
        session = Session(resources)
        resources.callback(session.console.close)
        try:
            experiment.run_commandline(keep_text(argv))
            if session.tracker is not None:
                session.written |= session.tracker.places()
            for what, where in session.written.items():
                session.console.line(f"{what:<12} {where}")
        except KeyboardInterrupt:
            resumes = "; with job_name and checkpoints_dir, the same command resumes" if session.plan else ""
            print(f"interrupted{resumes}", file=sys.stderr)
            sys.exit(signals.exit_status())


if __name__ == "__main__":
    main(sys.argv)
