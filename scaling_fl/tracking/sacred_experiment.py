"""The Sacred experiment of a script: its configuration, sources and log, set up before a command runs."""

import logging
import os
import re
import sys
from pathlib import Path

import sacred.experiment
from sacred import SETTINGS, Experiment, commands, dependencies
from sacred.utils import SacredError, create_basic_stream_logger, format_sacred_error

from scaling_fl.config.command_line import NAMED_CONFIGS
from scaling_fl.config.schema import Config
from scaling_fl.text import for_stderr


class _ReportedError(SacredError):
    """Sacred prints the message alone, unless --debug asks for a traceback."""

    def __init__(self, error: Exception):
        super().__init__(str(error), print_traceback=False)


class Refused(_ReportedError):
    """Bad input, which the user can correct."""

    __module__ = "builtins"  # the printed message begins with `Refused: `, without a module


class Failed(_ReportedError):
    """A process of the job failed; the message holds its traceback, or its likely cause."""

    __module__ = "builtins"


class Sources:
    """The repository in `root`, as Sacred records it."""

    def __init__(self, root: Path):
        self.root = root
        self._commit = self._cached_commit()

    @property
    def commit_unknown(self) -> bool:
        """Whether there is no git, no repository or no commit. Sacred would crash."""
        return self._commit is None

    def uncommitted(self) -> str:
        """Why the sources aren't those of a commit; empty if they are."""
        if self._commit is None:
            return "no git repository with a commit"
        return f"uncommitted changes in {self.root}" if self._commit[2] else ""

    def _cached_commit(self) -> tuple[str, str, bool] | None:
        """The repository, the commit, and whether files have changed.

        Sacred reuses the answer. By default, it runs three git commands per source file, which takes seconds.
        """
        try:
            import git

            git.Repo(self.root).head.commit.hexsha  # noqa: B018
            answer = dependencies.get_commit_if_possible(str(self.root / "scripts" / "train_federated.py"), True)
        except Exception:  # no git, no repository, no commit, another user's repository: each raises its own exception
            return None
        dependencies.get_commit_if_possible = lambda filename, save_git_info: answer
        return answer  # type: ignore[no-any-return]


def set_up(experiment: Experiment, sources: Sources) -> None:
    """Add all keys, named configurations and source files to `experiment`, and settle what is logged."""
    SETTINGS.CAPTURE_MODE = "sys"  # "fd" deadlocks with child processes
    for handler in create_basic_stream_logger().handlers:
        handler.addFilter(_is_news)
    # Sacred ends the message with a line break, and prints it with another.
    sacred.experiment.format_sacred_error = lambda error, usage: for_stderr(
        format_sacred_error(error, usage).rstrip("\n")
    )
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        for name, text in vars(commands).items():
            if isinstance(text, str):
                setattr(commands, name, re.sub(r"\x1b\[[\d;]*m", "", text))
    experiment.add_config(Config().to_mapping())
    for name, values in NAMED_CONFIGS.items():
        experiment.add_named_config(name, values)
    for path in sorted((sources.root / "scaling_fl").rglob("*.py")):  # Sacred alone would record imported modules only
        experiment.add_source_file(str(path))


def set_log_level(config: Config) -> None:
    """Leave out Sacred's lines on the progress of the run with verbosity=quiet."""
    if config.verbosity == "quiet":
        logging.getLogger("scaling_fl").setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether the user needs this line of the log.

    Of libraries, only warnings and errors: botocore, for one, logs where it found credentials. Sacred itself logs when a
    run starts and ends. But a refusal isn't a failure after so many seconds; and nodes other than 0 have no observers on
    purpose.
    """
    if os.path.dirname(record.pathname) != os.path.dirname(sacred.__file__):
        return record.levelno > logging.INFO
    refused = isinstance(sys.exc_info()[1], Refused) and record.msg.startswith("Failed after")
    return not refused and not record.msg.startswith("No observers have been added")
