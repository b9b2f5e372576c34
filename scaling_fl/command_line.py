"""What is typed: text values as they were typed, and named configurations that set several keys at once."""

import ast
import typing
from collections.abc import Sequence
from typing import Any

from scaling_fl.config import Config


def keep_text(argv: Sequence[str]) -> list[str]:
    """The command line, with the values of text keys, and what is no Python literal, quoted as Python strings.

    Sacred reads every value as a Python literal where it can, so that the job name 20261122_230300 would
    become the number 20261122230300. `None` and what is already quoted stay as they are.
    """
    text_keys = {name for name, hint in typing.get_type_hints(Config).items() if hint in (str, str | None)}

    def quoted(word: str) -> str:
        key, equals, value = word.partition("=")
        if not equals or value.strip() == "None":
            return word
        try:
            literal = ast.literal_eval(value.strip())
            stays = key.strip() not in text_keys or isinstance(literal, str)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            MemoryError,
            RecursionError,
        ):  # no literal; Sacred knows two of these
            stays = False
        return word if stays else f"{key}={value!r}"

    start = argv.index("with") + 1 if "with" in argv else len(argv)
    return [*argv[:start], *map(quoted, argv[start:])]


NAMED_CONFIGS: dict[str, dict[str, Any]] = {
    # Four sites learn from the standard library's docstrings: no download, about a minute on two cores.
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
