"""Choices as they are read and as a model sees them; `federated/test_choices.py` has whole jobs."""

import json
from pathlib import Path

import numpy as np
import pytest

from scaling_fl.data import choices
from scaling_fl.data.examples import Split
from scaling_fl.data.readers.tables import Table
from scaling_fl.errors import UserError
from tests.data.test_conversations import CHAT, asked_for, tokenizer


def ending(chat: list[dict[str, str]], response: str) -> str:
    return json.dumps([*chat[:-1], chat[-1] | {"content": response}])


def test_of_a_chat_the_last_response_alone_is_chosen(tmp_path: Path) -> None:
    words, chats = tokenizer(), (CHAT, CHAT[:2])
    options = (("piston", "wheel brake", "gearbox engine"), ("forest", "meadow"))
    given = [[ending(chat, option) for option in of_chat] for chat, of_chat in zip(chats, options, strict=True)]
    split = Split([json.dumps(chat) for chat in chats], np.zeros(2, np.int64), choices=given)
    choices.write(tmp_path / "choices", words, split, 64, None)
    found = choices.read(tmp_path / "choices", words.pad_token_id)
    assert found is not None
    assert found.rows.tolist() == [0, 0, 0, 1, 1]
    assert found.right.tolist() == [False, True, False, True, False]
    assert [asked_for(found.store, row, words) for row in range(5)] == [
        [*option.split(), "[SEP]"] for of_chat in options for option in of_chat
    ]
    assert choices.read(tmp_path / "none", 0) is None


def table(*values: object) -> Table:
    """Rows 4, 7 and so on, each with the response "stone"."""
    said = json.dumps([CHAT[0], {"role": "assistant", "content": "stone"}])
    numbers = range(4, 4 + 3 * len(values), 3)
    return Table({"said": [said] * len(values), "options": list(values)}, [("t.jsonl", numbers)])


def test_choices_are_a_list_or_its_json() -> None:
    found = choices.of_table(table(["stone", "wheel"], '["brake", "stone"]'), "options", "said")
    assert [[json.loads(text)[-1]["content"] for text in of_row] for of_row in found] == [
        ["stone", "wheel"], ["brake", "stone"],
    ]  # fmt: skip
    assert all(json.loads(text)[:-1] == CHAT[:1] for of_row in found for text in of_row)


@pytest.mark.parametrize("value", [["stone", ""], ["stone"], "stone", '{"stone": 1, "wheel": 2}', None, 3])
def test_what_is_no_list_of_responses_is_refused_with_its_place(value: object) -> None:
    with pytest.raises(UserError, match=r"^t\.jsonl, row 7, column options: expected a list of two or more different"):
        choices.of_table(table(["stone", "wheel"], value), "options", "said")
