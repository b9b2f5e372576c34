"""The command line: text values kept verbatim, named configurations that set several keys, configuration files."""

import ast
import os
import typing
from collections.abc import Sequence
from typing import Any

from sacred.config import load_config_file

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


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
    return [*argv[:start], *map(quoted, argv[start:])]


NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    # Four sites train on the standard library's docstrings: no download, under a minute on two cores.
    "demo": {
        "site_ids": [0, 0, 0, 0],
        "task_name": "demo",
        "model": "tiny",
        "num_rounds": 6,
        "learning_rate": 1e-3,
        "batch_size": 16,
        "max_seq_len": 48,
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


def check_config_file(word: str) -> None:
    """Raise `UserError` unless the file `word` holds a configuration.

    Sacred takes any word without = for a named configuration or a file, and its own errors are obscure.
    """
    if not os.path.exists(word):
        raise UserError(
            f"{word}: expected key=value, a named configuration ({', '.join(NAMED_CONFIGS)}) or an existing file"
        )
    if word.endswith(".pickle"):
        raise UserError(f"{word}: loading a pickle can run arbitrary code; write the configuration as JSON or YAML")
    try:
        values = load_config_file(word)
    except Exception as error:  # every file format raises its own exceptions
        raise UserError(
            f"{word}: cannot read it as a configuration: {type(error).__name__}: {error}; correct it"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{word}: expected keys and values, found {type(values).__name__}; correct it")
