"""Prompts and responses, and chats: what is read, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError

PAIR = {"prompt": "river?", "response": "stone", "topic": "x"}
CHAT = [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def load(folder: Path, *rows: dict[str, Any], **keys: Any) -> Any:
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = {f"{name}_path": str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return load_task(Config.from_mapping({"task_name": "instructions", "site_ids": [-1]} | paths | keys))


def test_a_prompt_and_a_response_are_a_chat_of_two_messages(tmp_path: Path) -> None:
    task = load(tmp_path, PAIR, PAIR | {"response": " two\nlines "}, label_column="topic")
    assert task.conversations
    assert task.predicts_tokens
    assert (task.classes, task.label_names) == ((), ("x",))
    assert [json.loads(text) for text in task.train.texts] == [
        [{"role": "user", "content": "river?"}, {"role": "assistant", "content": said}]
        for said in ("stone", " two\nlines ")
    ]


def test_other_columns_are_named_by_keys(tmp_path: Path) -> None:
    task = load(tmp_path, {"q": "one", "a": "two"}, prompt_column="q", response_column="a")
    assert [message["content"] for message in json.loads(task.test.texts[0])] == ["one", "two"]


@pytest.mark.parametrize("chat", [CHAT, json.dumps(CHAT)])
def test_chats_are_lists_of_messages_or_their_json(tmp_path: Path, chat: Any) -> None:
    task = load(tmp_path, {"messages": chat}, messages_column="messages")
    assert json.loads(task.train.texts[0]) == CHAT


@pytest.mark.parametrize(
    ("row", "keys", "message"),
    [
        ({"prompt": "a"}, {}, "has no column response"),
        (PAIR | {"response": " "}, {}, "row 1, column response: the response is empty; fill it in"),
        (PAIR, {"prompt_template": "{prompt}"}, r"prompt_template='\{prompt\}': it has \{response\} 0 times"),
        (PAIR, {"prompt_template": "{response} {prompt} {prompt}"}, r"it has \{prompt\} 2 times"),
        (PAIR, {"prompt_template": "{prompt} {response}."}, r"it must end with \{response\}"),
        (PAIR, {"response_column": "prompt"}, "response_column=prompt: prompt_column names the same column"),
        (PAIR, {"text_column": "prompt"}, "text_column='prompt': task_name=instructions doesn't use it"),
        ({"m": CHAT}, {"messages_column": "m", "response_column": "r"}, "chats have no response_column; leave one"),
        ({"m": CHAT[:2]}, {"messages_column": "m"}, "row 1, column m: the last message is not the assistant's"),
        ({"m": []}, {"messages_column": "m"}, "row 1, column m: expected a list of messages"),
        ({"m": "hello"}, {"messages_column": "m"}, "row 1, column m: expected a list of messages"),
        ({"m": [{"role": "assistant"}]}, {"messages_column": "m"}, "expected messages with the texts role and content"),
        (
            {"m": [{"role": "bot", "content": "a"}]},
            {"messages_column": "m"},
            "the role 'bot'; expected system, user, as",
        ),
    ],
)
def test_what_is_no_conversation_is_refused(
    tmp_path: Path, row: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, row, **keys)
