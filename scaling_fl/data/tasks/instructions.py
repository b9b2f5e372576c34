"""Prompts and responses, or chats: a language model learns to respond. Files as for `lm`, or a hub data set."""

import dataclasses
import json
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.data import choices
from scaling_fl.data.examples import Task
from scaling_fl.data.readers.tables import Table
from scaling_fl.data.tasks import lm
from scaling_fl.errors import UserError
from scaling_fl.progress import Report

_OWN = ("prompt_column", "response_column", "messages_column", "prompt_template", "choices_column")
_ROLES = ("system", "user", "assistant")


def keys(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """See the package."""
    needs, takes = lm.keys(config)
    return needs, (*_OWN, *(key for key in takes if key != "text_column"))


def load(config: Config, report: Report) -> Task:
    """Conversations. Their labels, if `label_column` is set, only divide them among sites."""
    _check_template(config)
    if config.messages_column is not None:
        for key in ("prompt_column", "response_column", "prompt_template"):
            if getattr(config, key) is not None:
                raise UserError(f"messages_column={config.messages_column}: chats have no {key}; leave one of them out")
        columns = {config.messages_column: "messages_column"}
    else:
        prompt, response = config.prompt_column or "prompt", config.response_column or "response"
        if prompt == response:
            raise UserError(
                f"response_column={response}: prompt_column names the same column; choose different columns"
            )
        columns = {prompt: "prompt_column", response: "response_column"}
    for key in ("label_column", "partition_column", "choices_column"):
        if (name := getattr(config, key)) in columns:
            raise UserError(f"{key}={name}: {columns[name]} names the same column; choose another, or leave out {key}")
    if config.label_column is not None:
        columns[config.label_column] = "label_column"
    of_test = {} if config.choices_column is None else {config.choices_column: "choices_column"}
    if config.test_fraction:
        columns |= of_test
    train, test = lm.both_tables(config, columns, of_test)
    column = next(iter(columns))
    for table in (train, test):
        if table is not None:
            table.columns[column] = _conversations(config, table)
    task = lm.of_tables(config, train, test, column)
    if (name := config.choices_column) is not None:
        train_choices, test_choices = (  # with test_fraction, the training rows have both
            None if table is None or name not in table.columns else choices.of_table(table, name, column)
            for table in (train, test)
        )
        task = dataclasses.replace(
            task,
            train=dataclasses.replace(task.train, choices=train_choices),
            test=dataclasses.replace(task.test, choices=test_choices),
        )
    return dataclasses.replace(task, conversations=True)


def _check_template(config: Config) -> None:
    template = config.prompt_template
    if template is None:
        return
    for part in ("{prompt}", "{response}"):
        if template.count(part) != 1:
            raise UserError(
                f"prompt_template={template!r}: it has {part} {template.count(part)} times; write it once, such as "
                "'Question: {prompt}\\nAnswer: {response}'"
            )
    if not template.endswith("{response}"):
        raise UserError(f"prompt_template={template!r}: it must end with {{response}}, after which the model stops")


def _conversations(config: Config, table: Table) -> list[Any]:
    """Each row's messages, as JSON. Raises `UserError` at the first row that is no conversation."""
    if config.messages_column is not None:
        column = config.messages_column
        return [
            json.dumps(_checked(table.location(row, column), value)) for row, value in enumerate(table.columns[column])
        ]
    prompt, response = config.prompt_column or "prompt", config.response_column or "response"
    rows = zip(table.texts(prompt), table.texts(response), strict=True)
    return [
        json.dumps(
            _checked(
                table.location(number, response),
                [{"role": "user", "content": asked}, {"role": "assistant", "content": said}],
            )
        )
        for number, (asked, said) in enumerate(rows)
    ]


def _checked(place: str, messages: Any) -> list[dict[str, str]]:
    """Messages with a role and a content each, the last of them a response. Raises `UserError`."""
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError:
            messages = None
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place}: expected a list of messages, each with role and content")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: expected messages with the texts role and content, found {str(message)[:80]}")
        if message["role"] not in _ROLES:
            raise UserError(f"{place}: the role {message['role']!r}; expected {', '.join(_ROLES)}")
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: the last message is not the assistant's, so there is nothing to learn; remove the row"
        )
    if not messages[-1]["content"].strip():
        raise UserError(f"{place}: the response is empty; fill it in, or remove the row")
    return [{"role": message["role"], "content": message["content"]} for message in messages]
