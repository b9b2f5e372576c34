#!/usr/bin/env python
r"""Fine-tune a language model on many sites without pooling their data.

Start with:
  ./run-local.sh scripts/train_federated.py with demo
  ./run-local.sh scripts/train_federated.py show_task with task_name=imdb
  ./run-local.sh scripts/train_federated.py show_shards with demo \
      partition=dirichlet alpha=0.1 num_sites=32
  ./run-local.sh scripts/train_federated.py print_config with demo num_rounds=3
  ./run-local.sh scripts/train_federated.py with site_ids=[0,0,1,1] \
      num_rounds=100 model=distilbert task_name=agnews \
      train_path=train.csv test_path=test.csv \
      job_name=news

Commands:
  train         train, evaluate and record every round (the default command)
  show_task     preview a task: rows, labels, lengths in tokens, duplicates
  show_shards   preview a partition: rows of each label at each site
  evaluate      measure a checkpoint or a trained model on any test file
  export        make a Hugging Face folder of a checkpoint
  sync          bring a job's records up to date, e.g. after a MongoDB outage
  print_config  show the configuration that would run on this machine
  help          list all keys with their defaults; or help KEY, help COMMAND

Keys follow `with`, as key=value. `help` lists them; docs/configuration.md has
the same list. `demo` and `paper` are named configurations: several keys each.

Sacred's most-used flags (https://sacred.readthedocs.io):
  -u            record nothing
  -c TEXT       add a comment to the record
  -n NAME       name the experiment in the record
  -F FOLDER     write a second file record
  -m HOST:PORT:DB
                write a second MongoDB record
  -d            show stack traces
  -D            start a debugger after a failure

To resume a job, run the same command again, with its job_name. Checkpoints
and the final model are in checkpoints/JOB_NAME, or in checkpoints_dir.
docs/quickstart.md explains the output, and docs/troubleshooting.md the
messages.
"""

import os
import sys

# So that the script runs from any folder, installed or not.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from scaling_fl.runtime import signals

if __name__ == "__main__":
    signals.exit_at_once()  # first, because the imports below take seconds

import atexit
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaling_fl.config import flags, key_help

ROOT = Path(__file__).resolve().parent.parent

if __name__ == "__main__" and (_text := key_help.asked_for(sys.argv[1:], __doc__)):  # imports below take a while
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
    print(_text, file=sys.stdout if sys.argv[1:] else sys.stderr)
    sys.exit(0 if sys.argv[1:] else 2)

from scaling_fl import env_file, host  # noqa: E402
from scaling_fl.config.command_line import NAMED_CONFIGS, check_config_file, check_words, keep_text  # noqa: E402
from scaling_fl.errors import JobFailed, UserError  # noqa: E402
from scaling_fl.runtime import fork_server  # noqa: E402
from scaling_fl.text import for_stderr  # noqa: E402

if __name__ == "__main__":
    try:
        check_words(sys.argv[1:])
        env_file.load(ROOT / ".env")
        host.cache_folder()
    except UserError as error:
        sys.exit(for_stderr(f"Refused: {error}"))
    if "with" in sys.argv and not {"print_config", "sync"} & set(sys.argv):
        fork_server.start(adapters=any("lora" in word for word in sys.argv))  # imports while Sacred is imported here

from sacred import Experiment  # noqa: E402
from sacred.run import Run  # noqa: E402

from scaling_fl.config.schema import Config  # noqa: E402
from scaling_fl.config.sections.commands import check_command  # noqa: E402
from scaling_fl.runtime import launcher  # noqa: E402
from scaling_fl.runtime.job import Job  # noqa: E402
from scaling_fl.tracking import mongo_address, sacred_experiment  # noqa: E402
from scaling_fl.tracking.sacred_experiment import Failed, Refused  # noqa: E402

sources = sacred_experiment.Sources(ROOT)
# Made here, because Sacred records the file that makes it as the main one.
experiment = Experiment("scaling_fl", base_dir=str(ROOT), save_git_info=not sources.commit_unknown)
experiment.doc = __doc__.splitlines()[0]  # docopt would read the flags in the rest as further options
sacred_experiment.set_up(experiment, sources)
job: Job  # set by `main`


@contextlib.contextmanager
def _reported_errors() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        job.link.announce_end(error)
        raise Refused(error) from error
    except JobFailed as error:
        job.link.announce_end(error)
        job.failed(error)
        raise Failed(error) from error
    except KeyboardInterrupt as error:
        signals.start_shutdown_timer()
        job.link.announce_end(error)
        raise
    finally:
        job.console.close()  # before Sacred prints the error


@experiment.option_hook
def remember_options(options: dict[str, Any]) -> None:
    for word in options["UPDATE"] or []:
        if "=" not in word and word not in NAMED_CONFIGS:
            with _reported_errors():
                check_config_file(word)
    with _reported_errors():
        # Sacred itself would say so after loading the model.
        if options["--enforce_clean"] and (found := sources.uncommitted()):
            raise UserError(f"-e: expected sources that are committed, found {found}; commit them, or leave -e out")
        job.unobserved = bool(options["--unobserved"])
        # Sacred's own observers would create a new run at each start, and wait a minute for a server.
        if folder := options["--file_storage"]:
            job.destinations.folders.append(Path(folder))
        if typed := options["--mongo_db"]:
            job.destinations.addresses.append(mongo_address.from_flag(typed))
    options["--file_storage"] = options["--mongo_db"] = None
    options["--force"] = True  # no warnings about types, which `Config` checks


@experiment.config_hook
def prepare(config: dict[str, Any], command_name: str, logger: Any) -> dict[str, Any]:
    """Validate, and prepare everything that training needs, before Sacred starts a run: bad input leaves no record."""
    with _reported_errors():
        checked = job.config_of(config)
        check_command(checked, command_name)
        sacred_experiment.set_log_level(checked)
        if command_name == train.__name__ and (tracker := job.begin(checked)) is not None:
            experiment.observers.append(tracker)
    return {}


@experiment.main
def train(_run: Run) -> None:
    """Train: rounds of local training, federated averaging and evaluation."""
    with _reported_errors():
        job.train()


@experiment.command(unobserved=True)
def print_config(_config: dict[str, Any]) -> None:
    """Show the configuration that would run on this machine, with the defaults of the keys that are set."""
    from scaling_fl.runtime import hardware  # imports torch, which no other command needs in this process

    with _reported_errors():
        config = job.config_of(_config)
        print(*key_help.compared_with_defaults(config, hardware.resolved(config)), sep="\n")


@experiment.command(unobserved=True)
def sync(_config: dict[str, Any]) -> None:
    """Bring a job's records up to date from its events: runs/_events/JOB.jsonl, or those in checkpoints_dir."""
    with _reported_errors():
        job.sync(job.config_of(_config))


@experiment.command(unobserved=True)
def show_task(_config: dict[str, Any]) -> None:
    """Preview the task: rows, labels, lengths in tokens, duplicates, examples. Trains and writes nothing."""
    _show("scaling_fl.commands.show_task:show", "the preview", Config.from_mapping(_config), max(60, job.console.width))


@experiment.command(unobserved=True)
def show_shards(_config: dict[str, Any]) -> None:
    """Preview the partition: sites × labels, as a table and as a picture. Trains and writes nothing."""
    _show("scaling_fl.commands.show_shards:show", "the table", Config.from_mapping(_config), max(60, job.console.width))


@experiment.command(unobserved=True)
def evaluate(_config: dict[str, Any]) -> None:
    """Measure a checkpoint or a trained model on any test file: metrics, confusion matrix, predictions as CSV."""
    _show("scaling_fl.commands.evaluate:show", "the evaluation", job.config_of(_config), max(60, job.console.width))


@experiment.command(unobserved=True)
def export(_config: dict[str, Any]) -> None:
    """Make a Hugging Face folder of a checkpoint: of the file `checkpoint`, or of the newest of `job_name`."""
    _show("scaling_fl.commands.export:export", "the export", job.config_of(_config))


def _show(target: str, name: str, config: Config, *arguments: Any) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # for `| head`
    with _reported_errors(), host.work_folder() as folder:
        launcher.run_children(target, [(config, *arguments)], [name], folder, job.console.event)


def main(argv: list[str]) -> None:
    """Run the command, and exit without waiting for library threads that an unreachable store blocks."""
    status = 0
    try:
        _command(argv)
    except SystemExit as end:
        if isinstance(end.code, str):  # the usage
            raise
        status = end.code or 0
    atexit._run_exitfuncs()  # removes temporary files
    with contextlib.suppress(OSError):  # the reader is gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _command(argv: list[str]) -> None:
    global job
    commands_ = dict(experiment.gather_commands())
    _, words = flags.separate(argv[1:], ())
    if words[:1] == ["help"]:  # after a flag, or on a command; see `asked_for`
        print(key_help.on_command(words[1:], commands_) if words[1:] else __doc__.rstrip())
        return
    if words and words[0] not in {"with", *commands_}:
        similar = host.did_you_mean(words[0], [*commands_])
        sys.exit(for_stderr(f"Refused: {words[0]}: there is no such command{similar}; --help lists the commands"))
    signals.install()
    with contextlib.ExitStack() as resources:
        job = Job(resources)
        resources.callback(job.console.close)
        try:
            experiment.run_commandline(keep_text(argv))
            job.print_written()
        except KeyboardInterrupt:
            signals.ignore()
            print(for_stderr(f"interrupted{job.after_interrupt()}"), file=sys.stderr)
            sys.exit(signals.exit_status())


if __name__ == "__main__":
    main(sys.argv)
