"""`train_federated.py --help` and `help`: what a newcomer needs first, and every key."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sacred.arg_parser import get_config_updates

from scaling_fl.config.command_line import NAMED_CONFIGS, keep_text
from scaling_fl.config.key_help import as_command_line, sections, unknown
from scaling_fl.config.schema import Config
from tests.conftest import SCRIPT, clean_environment

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["show_task", "--help"], ["with", "demo", "-h"]])
def test_the_overview_names_commands_keys_and_pages(command: Command, words: list[str], tmp_path: Path) -> None:
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Fine-tune a language model on many sites without pooling their data.\n")
    for name in ("train", "show_task", "show_shards", "evaluate", "export", "sync", "print_config", "help"):
        assert f"\n  {name} " in done.stdout
    assert "docs/configuration.md" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_overview_goes_to_stderr(command: Command) -> None:
    done = command()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == command("--help").stdout


def test_the_examples_of_the_overview_are_valid(command: Command) -> None:
    shown = command("--help").stdout.replace("\\\n", " ")
    examples = [line.split()[2:] for line in shown.splitlines() if line.startswith("  ./run-local.sh ")]
    assert len(examples) == 5
    for words in examples:
        keys, named = get_config_updates(keep_text(words)[words.index("with") + 1 :])
        Config.from_mapping({key: value for name in named for key, value in NAMED_CONFIGS[name].items()} | keys)


def test_the_flags_of_the_overview_are_accepted(command: Command) -> None:
    values = {"TEXT": "text", "NAME": "name", "FOLDER": "folder", "HOST:PORT:DB": "127.0.0.1:1:db"}
    flags = re.findall(r"^  (-\w)(?: (\S+))?", command("--help").stdout, re.MULTILINE)
    assert [flag for flag, _ in flags] == ["-u", "-c", "-n", "-F", "-m", "-d", "-D"]
    done = command("print_config", *(word for flag, kind in flags for word in (flag, values.get(kind)) if word))
    assert (done.returncode, done.stderr.count("Traceback")) == (0, 0), done.stderr
    assert "name - Completed" in done.stderr + done.stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_help_lists_every_key_by_section(command: Command, columns: int) -> None:
    done = command("help", COLUMNS=str(columns))
    assert (done.returncode, done.stderr) == (0, "")
    assert 70 < max(map(len, done.stdout.splitlines())) <= min(columns, 120)
    text = " ".join(done.stdout.split())
    position = 0
    for heading, fields in sections():
        position = text.index(f" {heading.upper()} ", position)
        for field in fields:
            entry = f" {field.name}={as_command_line(field.default)} {field.metadata['help']}"
            position = text.index(entry, position)
    assert sum(len(fields) for _, fields in sections()) == len(dataclasses.fields(Config))


def test_help_on_keys_adds_their_valid_values(command: Command) -> None:
    done = command("help", "max_restarts", "keep_best")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("  max_restarts=0\n      ")
    assert "\n      valid: a whole number, 0 or more\n  keep_best=None\n" in done.stdout


def test_help_on_a_command_is_its_description_and_other_words_are_refused(command: Command) -> None:
    described = command("help", "sync")
    assert described.stdout.startswith("sync\n  Bring a job's records up to date from its events: ")
    assert described.returncode == 0
    assert "_config" not in described.stdout
    mistyped = command("help", "learnin_rate")
    assert (mistyped.returncode, mistyped.stdout) == (1, "")
    assert mistyped.stderr == "help learnin_rate: there is no such key or command; did you mean learning_rate?\n"
    assert unknown("zzz") == "there is no such key or command; `help` lists the keys, `--help` the commands"


def test_help_on_a_named_configuration_lists_its_keys(command: Command) -> None:
    done = command("help", "demo")
    assert (done.returncode, done.stderr) == (0, "")
    title, *lines = done.stdout.splitlines()
    assert title == "with demo stands for"
    words = [word for line in lines for word in line.split()]
    updates, named = get_config_updates(keep_text(["with", *words])[1:])
    assert (updates, named) == (NAMED_CONFIGS["demo"], [])


@pytest.mark.parametrize("word", ["help", "--help"])
def test_help_imports_neither_torch_nor_sacred(command: Command, word: str, tmp_path: Path) -> None:
    for name in ("torch", "sacred", "transformers", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} is imported')")
    done = command(word, PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


def test_help_into_a_pipe_that_closes_early_says_nothing_more(tmp_path: Path) -> None:
    done = subprocess.run(
        f"'{sys.executable}' '{SCRIPT}' help | head -n 1", shell=True, cwd=tmp_path, env=clean_environment(),
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("Write keys after `with`")
    assert done.stderr == ""


def test_a_mistyped_command_is_answered_with_the_one_that_is_meant(command: Command, tmp_path: Path) -> None:
    done = command("-n", "x", "evalute", "with", "demo")
    assert (done.returncode, done.stdout) == (1, "")
    said = "Refused: evalute: there is no such command (did you mean evaluate?); --help lists the commands\n"
    assert done.stderr == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("-u", "help"), ("help", "help")])
def test_help_after_a_flag_and_help_on_help_are_help(command: Command, words: tuple[str, ...]) -> None:
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == command("--help").stdout
