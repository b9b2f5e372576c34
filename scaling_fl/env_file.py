"""The file `.env`: settings for this machine, read into the environment. `.env.template` explains how to quote values."""

import os
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from scaling_fl.errors import UserError


def load(path: Path) -> None:
    """Set the variables of the file, except those that are set already. Does nothing if there is no file.

    No variable in a value is expanded, as in Docker Compose. Raises `UserError` at the first line that sets nothing. The
    line itself isn't quoted in the message, because it may hold a password.
    """
    try:
        text = path.open(encoding="utf-8")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); correct its permissions, or remove it") from error
    with text:
        try:
            bindings = list(parse_stream(text))
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: expected UTF-8 text; save the file as UTF-8") from error
    values = dict[str, str]()
    for binding in bindings:
        if binding.error or (binding.key is not None and binding.value is None):
            raise UserError(
                f"{path}, line {_line(binding)}: expected NAME=value, with closing quotes where there are any; correct the line, or "
                "put # in front of it"
            )
        if binding.key is not None and binding.value is not None:
            if "\0" in binding.key + binding.value:  # no variable can hold it
                raise UserError(f"{path}, line {_line(binding)}: expected NAME=value, found a NUL character; remove it")
            if "=" in binding.key:
                raise UserError(f"{path}, line {_line(binding)}: expected NAME=value, found a name with =; correct it")
            values[binding.key] = binding.value
    for name, value in values.items():
        os.environ.setdefault(name, value)


def _line(binding: Binding) -> int:
    """The line in which the binding begins. Its original text begins with the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
