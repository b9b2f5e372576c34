"""What the README says of keys, tasks and files is what there is."""

import dataclasses
import re

import pytest

from scaling_fl.config.command_line import NAMED_CONFIGS
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.data import TASKS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def as_typed(value: object) -> str:
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, tuple) else str(value)


@pytest.mark.parametrize("field", dataclasses.fields(Config), ids=lambda field: field.name)
def test_every_key_is_explained(field: "dataclasses.Field[object]") -> None:
    default = "" if field.default is None else f"`{as_typed(field.default)}`"
    assert f"| `{field.name}` | {default} | {field.metadata['help']} |\n".replace("|  |", "| |") in README


def test_named_configurations_are_shown() -> None:
    for name, values in NAMED_CONFIGS.items():
        shown = " ".join(f"{key}={as_typed(tuple(v) if isinstance(v, list) else v)}" for key, v in values.items())
        assert f"| `{name}` | `{shown}` |" in README


def test_every_task_and_every_file_that_is_named_exists() -> None:
    for name in TASKS:
        assert f"| `{name}` |" in README
    for path in re.findall(r"`(?:\./)?((?:scaling_fl|scripts)/[\w/.]*|run-local\.sh|\.env\.template)`", README):
        assert (ROOT / path).exists(), path
