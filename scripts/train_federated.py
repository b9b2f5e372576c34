#!/usr/bin/env python
"""Fine-tune a language model federatedly: N sites, one model, no shared data.

    ./run-local.sh scripts/train_federated.py with demo
    ./run-local.sh scripts/train_federated.py show_task with task_name=imdb
    ./run-local.sh scripts/train_federated.py with site_ids=[0,0,1,1] num_rounds=100 model=distilbert \
        task_name=agnews train_path=train.csv test_path=test.csv job_name=news checkpoints_dir=checkpoints

README.md explains every key. This file only assembles: Sacred's configuration in, preparation, rounds, record.
"""

import contextlib
import dataclasses
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
    dotenv.load_dotenv(ROOT / ".env")
    if "with" in sys.argv and "print_config" not in sys.argv:
        launch.begin()  # torch is imported there while Sacred is imported here

from sacred import SETTINGS, Experiment  # noqa: E402
from sacred.config import load_config_file  # noqa: E402
from sacred.run import Run  # noqa: E402
from sacred.utils import SacredError  # noqa: E402

from scaling_fl import machine, tracking  # noqa: E402
from scaling_fl.command_line import NAMED_CONFIGS, keep_text  # noqa: E402
from scaling_fl.config import Config  # noqa: E402
from scaling_fl.console import Console  # noqa: E402
from scaling_fl.errors import JobFailed, UserError  # noqa: E402
from scaling_fl.plan import Event, Plan  # noqa: E402

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
        self.console = Console()
        self.unobserved = self.queued = False
        self.folders: list[Path | str] = [RUNS]
        self.mongo_addresses: list[tracking.MongoAddress] = []
        self.plan: Plan | None = None
        self.log: tracking.EventLog | None = None


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
        raise Refused(error) from error
    except JobFailed as error:
        raise Failed(error) from error
    finally:
        session.console.close()  # before Sacred prints the error


def _check_config_file(word: str) -> None:
    """Sacred takes a word without = for a named configuration or a file, and fails obscurely where it is neither."""
    if not os.path.exists(word):
        raise UserError(
            f"{word}: it is neither key=value, nor a named configuration ({', '.join(NAMED_CONFIGS)}), nor a file"
        )
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
    session.unobserved, session.queued = bool(options["--unobserved"]), bool(options["--queue"])
    # Sacred's own observers of these would share run numbers with ours, and wait a minute for a server.
    if folder := options["--file_storage"]:
        session.folders.append(folder)
    if address := options["--mongo_db"]:
        with _clear_errors():
            session.mongo_addresses.append(tracking.typed_address(address))
    options["--file_storage"] = options["--mongo_db"] = None


@experiment.config_hook
def prepare(config: dict[str, Any], command_name: str, logger: Any) -> dict[str, Any]:
    """Validate, and prepare all that training needs, before Sacred starts a run: bad input leaves no record."""
    with _clear_errors():
        checked = Config.from_mapping(config)
        if command_name != train.__name__:
            return {}
        if address := tracking.mongo_address(os.environ):
            session.mongo_addresses.insert(0, address)
        if checked.job_name is None:
            name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
            checked = dataclasses.replace(checked, job_name=name)
        session.resources.enter_context(machine.only_run_of(str(checked.job_name), checked.checkpoints_dir))
        folder = session.resources.enter_context(machine.work_folder())
        plan = session.plan = launch.prepare(checked, folder, session.console.event)
        if plan.finished:
            session.console.line(
                f"job {checked.job_name} is finished: {plan.round} rounds are done, and the model is in "
                f"{str(checked.checkpoints_dir).rstrip('/')}/model; for more rounds, raise num_rounds"
            )
            sys.exit(0)
        if not session.unobserved:
            if not session.queued:
                session.log = tracking.event_log(RUNS, checked)
                session.resources.callback(session.log.close)
            experiment.observers += tracking.observers(session.folders, session.mongo_addresses, session.console.line)
    return {}


@experiment.main
def train(_run: Run) -> None:
    """Train: rounds of local training, federated averaging and evaluation."""
    plan, console = session.plan, session.console
    assert plan is not None
    for note in plan.notes:
        console.line(f"note: {note}")
    console.plan(plan)
    tracker = tracking.Tracker(_run, session.log, plan, console.line)

    def on_event(event: Event) -> None:
        tracker.event(event)
        console.event(event, plan)

    try:
        with _clear_errors():
            launch.train(plan, on_event)
    except BaseException as error:
        tracker.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
        raise
    else:
        tracker.end("completed")
    for what, where in tracker.written():
        console.line(f"{what:<12} {where}")


@experiment.command(unobserved=True)
def show_task(_config: dict[str, Any]) -> None:
    """What the task yields: rows, labels, lengths in tokens, duplicates, examples. Nothing is trained or written."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` may have seen enough
    with _clear_errors(), machine.work_folder() as folder:
        jobs = [(Config.from_mapping(_config),)]
        launch.run("scaling_fl.preview:show", jobs, ["the preview"], folder, session.console.event)


def main(argv: list[str]) -> None:
    global session
    for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # workers end, Sacred says INTERRUPTED
        if signal.getsignal(stop) is not signal.SIG_IGN:  # nohup
            signal.signal(stop, launch.interrupt)
    with contextlib.ExitStack() as resources:
        session = Session(resources)
        resources.callback(session.console.close)
        try:
            experiment.run_commandline(keep_text(argv))
        except KeyboardInterrupt:
            resumes = "; with job_name and checkpoints_dir, the same command resumes" if session.plan else ""
            print(f"interrupted{resumes}", file=sys.stderr)
            sys.exit(130)


if __name__ == "__main__":
    main(sys.argv)
