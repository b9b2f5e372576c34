"""Multiple choice: the conversations of a test set with each of their possible responses, as a token store."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl.data import conversations
from scaling_fl.data.examples import Split
from scaling_fl.data.readers.tables import Table
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from scaling_fl.progress import Progress


def of_table(table: Table, column: str, conversations_column: str) -> list[list[str]]:
    """By row, the conversation with each of the responses that `column` lists, as JSON.

    Raises `UserError` at the first row whose own response isn't one of them.
    """
    found = []
    for row, conversation in enumerate(table.columns[conversations_column]):
        value, place = table.columns[column][row], table.location(row, column)
        options = _options(value)
        if len(options) < 2 or len(set(options)) < len(options) or not all(options):
            raise UserError(
                f'{place}: expected a list of two or more different responses, such as ["yes", "no"]; found {str(value)[:80]}'
            )
        *before, last = json.loads(conversation)
        if last["content"] not in options:
            raise UserError(
                f"{place}: the response {last['content'][:80]!r} isn't one of its choices, {str(options)[:80]}"
            )
        found.append([json.dumps([*before, last | {"content": option}]) for option in options])
    return found


def _options(value: Any) -> list[str]:
    """The responses; none if the value isn't a list of texts."""
    try:
        options = json.loads(value) if isinstance(value, str) else list(value)
    except (ValueError, TypeError):
        return []
    texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    return options if texts else []


class Choices:
    """M responses to N conversations: `rows` (M,) says whose, and `right` (M,) which of them is the conversation's own."""

    def __init__(self, folder: Path, pad_token_id: int):
        self.store = TokenStore(folder, pad_token_id)
        self.rows: npt.NDArray[np.int64] = np.load(folder / "rows.npy")
        self.right: npt.NDArray[np.bool_] = np.load(folder / "right.npy")


def write(
    folder: Path,
    tokenizer: Any,
    split: Split,
    max_seq_len: int,
    template: str | None,
    report: Progress = lambda done, total, unit: None,
) -> None:
    """Write the choices of `split`, if there are any, for `read`."""
    if split.choices is None:
        return
    texts = [choice for choices in split.choices for choice in choices]
    conversations.write(folder, tokenizer, texts, max_seq_len, template, report, last_alone=True)
    counts = [len(choices) for choices in split.choices]
    np.save(folder / "rows.npy", np.repeat(np.arange(len(split)), counts))
    own = [choice == text for text, choices in zip(split.texts, split.choices, strict=True) for choice in choices]
    np.save(folder / "right.npy", np.array(own))


def read(folder: Path, pad_token_id: int) -> Choices | None:
    """What `write` wrote, if anything."""
    return Choices(folder, pad_token_id) if folder.exists() else None
