"""Prompts and responses, and chats: what is read, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
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


ROWS = [
    {"prompt": "river?", "response": " stone\n", "topic": "x", "town": "Oslo", "messages": CHAT},
    {"prompt": "", "response": "engine", "topic": "y", "town": "Lund", "messages": CHAT[1:]},
    {"prompt": 'vi"olin\n', "response": "cello €", "topic": "x", "town": "Oslo", "messages": CHAT[1:] * 2},
]


def stored(folder: Path, rows: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Write the rows, and the last of them as test rows; return the keys that name them, by kind of file."""
    splits, keys = {"train": rows, "test": rows[-1:]}, dict[str, dict[str, str]]()
    for kind, suffix in (("lines", "jsonl"), ("Parquet", "parquet")):
        keys[kind] = {f"{name}_path": str(folder / f"{name}.{suffix}") for name in splits}
    for name, part in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), folder / f"{name}.parquet")
    saved = {name: datasets.Dataset.from_list(part) for name, part in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(folder / "saved")
    return keys | {"data set": {"dataset": str(folder / "saved")}}


@pytest.mark.parametrize("keys", [{}, {"messages_column": "messages"}])
def test_parquet_and_data_sets_of_the_hub_have_the_same_conversations_as_json_lines(
    tmp_path: Path, keys: dict[str, str]
) -> None:
    """Columns of texts, and lists of structs."""
    kinds = stored(tmp_path, ROWS)
    more = {"label_column": "topic", "partition": "column", "partition_column": "town"}
    loaded = {
        kind: load_task(Config.from_mapping({"task_name": "instructions", "site_ids": [-1]} | paths | more | keys))
        for kind, paths in kinds.items()
    }
    expected = [row["messages"] for row in ROWS]
    if not keys:
        expected = [[CHAT[1] | {"content": row["prompt"]}, CHAT[2] | {"content": row["response"]}] for row in ROWS]
    for kind, task in loaded.items():
        assert [json.loads(text) for text in task.train.texts] == expected, kind
        assert (task.test.texts, task.label_names) == (task.train.texts[-1:], ("x", "y")), kind
        assert (task.train.labels.tolist(), task.train.sites) == ([0, 1, 0], ["Oslo", "Lund", "Oslo"]), kind
        assert task.train.texts == loaded["lines"].train.texts, kind


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        (
            {"messages": CHAT[:2]},
            {"messages_column": "messages"},
            "column messages: the last message is not the assist",
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            {"messages_column": "messages"},
            "column messages: expected",
        ),
        ({"messages": None}, {"messages_column": "messages"}, "column messages: expected a list of messages"),
        ({"response": None}, {}, "column response: expected text, found nothing"),
        ({"response": "\n"}, {}, "column response: the response is empty"),
    ],
)
def test_rows_of_each_kind_of_file_are_refused_with_their_place(
    tmp_path: Path, changes: dict[str, Any], keys: dict[str, str], message: str
) -> None:
    """Rows of a data set are counted from 0."""
    for kind, paths in stored(tmp_path, [ROWS[0], ROWS[1] | changes, ROWS[2]]).items():
        place = r"split train \(rows from 0\), row 1, " if kind == "data set" else r"train\.\w+, row 2, "
        with pytest.raises(UserError, match=place + message):
            load_task(Config.from_mapping({"task_name": "instructions", "site_ids": [-1]} | paths | keys))


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


@pytest.mark.parametrize(
    ("keys", "read"),
    [({}, "prompt, response"), ({"prompt_column": "q"}, "q, response"), ({"messages_column": "m"}, "m")],
)
def test_text_files_have_no_conversations(tmp_path: Path, keys: dict[str, str], read: str) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    paths = {"train_path": str(tmp_path / "a.txt"), "test_path": str(tmp_path / "a.txt")}
    message = (
        rf"^train_path=.*a\.txt: text files have no columns, but task_name=instructions reads {read}; use JSON lines$"
    )
    with pytest.raises(UserError, match=message):
        load_task(Config.from_mapping({"task_name": "instructions", "site_ids": [-1]} | paths | keys))
