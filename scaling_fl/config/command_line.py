"""The command line: its words, text values kept verbatim, named configurations, configuration files."""

import ast
import dataclasses
import itertools
import os
import typing
from collections.abc import Sequence
from typing import Any

from scaling_fl import host
from scaling_fl.config import flags
from scaling_fl.config.parsing import list_like
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.commands import COMMANDS
from scaling_fl.errors import UserError
from scaling_fl.text import one_line


def keep_text(argv: Sequence[str]) -> list[str]:
    """Quote the values of text keys, and all values that are not Python literals, as Python strings.

    Sacred parses every value as a Python literal if it can, so the job name 20261122_230300 would become the number
    20261122230300. `None` and strings that are already quoted are left alone.
    """
    text_keys = {name for name, hint in typing.get_type_hints(Config).items() if hint in (str, str | None)}

    def quoted(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or value.strip() == "None":
            return word
        try:
            literal = ast.literal_eval(value.strip())
            keep = key.strip() not in text_keys or isinstance(literal, str)
        # Not a literal; Sacred itself catches only the first two.
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            keep = False
        return word if keep else f"{key}={value!r}"

    start = argv.index("with") + 1 if "with" in argv else len(argv)
    of_flags = [word[:1] == "-" or flags.takes_value(before) for before, word in itertools.pairwise(argv)]
    return [
        word if number < start or of_flags[number - 1] else quoted(word)  # argv[0] has no word before it
        for number, word in enumerate(argv)
    ]


NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    # Four sites train on the standard library's docstrings: no download, ten seconds on two cores.
    "demo": {
        "site_ids": [0, 0, 0, 0],
        "task_name": "demo",
        "model": "tiny",
        "num_rounds": 3,
        "learning_rate": 1.5e-3,
        "batch_size": 24,
        "max_seq_len": 16,
    },
    # The settings of the 2021 study (arXiv 2102.00875).
    "paper": {
        "optimiser": "sgd",
        "learning_rate": 2e-5,
        "weight_decay": 0.0,
        "batch_size": 32,
        "max_seq_len": 128,
        "num_local_epochs": 2,
        "group_by_length": False,
    },
}


def check_words(words: Sequence[str]) -> None:
    """Raise `UserError` at the first mistake that shows in the words alone, before anything is imported or started."""
    keys = tuple(field.name for field in dataclasses.fields(Config))
    _check_lists(words)
    options, words = flags.separate(words, keys)
    flags.check(options)
    if words[:1] == ["help"]:
        return
    position = words.index("with") if "with" in words else len(words)
    before, updates = words[:position], words[position + 1 :]
    for word in before:
        command = [] if word is before[0] else before[:1]
        if "=" in word or word in NAMED_CONFIGS or word in set(keys) - COMMANDS:
            more = " …" if len(words) > len(command) + 1 else ""
            raise UserError(
                f"{word}: expected `with` before the keys; write {' '.join([*command, 'with', word])}{more}"
            )
        if command:
            raise UserError(f"{word}: expected one command, found {command[0]} before it; keys and files follow `with`")
    if position < len(words) and not updates:
        raise UserError("with: expected keys after it, such as num_rounds=3; add some, or leave `with` out")
    seen = dict[str, str]()
    for word in updates:
        key, equals, _ = (part.strip() for part in word.partition("="))
        if word == "with":
            raise UserError("with: it is there twice; write it once, before the keys")
        if word in keys or (equals and not key):
            raise UserError(f"{word}: expected {key or 'key'}=value; leave no spaces around the =")
        if seen.setdefault(key, word) is not word and equals:
            raise UserError(f"{word}: {seen[key]} is there as well; leave one of them out")


def _check_lists(words: Sequence[str]) -> None:
    """Refuse a list with spaces, of which the shell makes several words, such as `site_ids=[0,` and `-1]`."""
    lists = {field.name: field for field in dataclasses.fields(Config) if "tuple" in str(field.type)}
    for number, word in enumerate(words):
        key, _, value = word.partition("=")
        if key in lists and value.startswith(("[", "(")) and not value.rstrip().endswith(("]", ")")):
            rest = words[number + 1 :]
            length = next((i for i, other in enumerate(rest, 1) if other.endswith(("]", ")"))), 0)
            whole = "".join([word, *rest[:length]]) if length else list_like(lists[key])
            raise UserError(f"{word}: expected a list without spaces; write {whole}")


def check_config_file(word: str) -> None:
    """Raise `UserError` unless the file `word` holds a configuration.

    Sacred takes any word without = for a named configuration or a file, and its own errors are obscure.
    """
    if not os.path.exists(word):
        raise UserError(
            f"{word}: expected key=value, a named configuration ({', '.join(NAMED_CONFIGS)}) or an existing file"
            f"{host.did_you_mean(word, [*NAMED_CONFIGS])}"
        )
    if word.endswith(".pickle"):
        raise UserError(f"{word}: loading a pickle can run arbitrary code; write the configuration as JSON or YAML")
    from sacred.config import load_config_file  # here, because the words are checked before Sacred is imported

    try:
        values = load_config_file(word)
    except Exception as error:  # every file format raises its own exceptions
        raise UserError(
            f"{word}: expected a configuration as JSON or YAML, found an error ({one_line(str(error), 200)}); correct it"
        ) from error
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise UserError(f"{word}: expected keys and values, found {found}; write a line such as num_rounds: 3")
    if repeated := _repeated_key(word):
        raise UserError(f"{word}: it sets {repeated} twice; leave one of them out")


def _repeated_key(path: str) -> str | None:
    """A key that a YAML or JSON file sets twice, of which parsers take the last; None if there is none."""
    import yaml  # type: ignore[import-untyped]  # here, because few commands need it

    try:
        with open(path, encoding="utf-8") as file:
            # JSON is YAML, but for rare files that Sacred reads all the same.
            root = yaml.compose(file, yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    seen = set[str]()
    for key, _ in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value in seen:
            return str(key.value)
        seen.add(key.value)
    return None
