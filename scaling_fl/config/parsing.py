"""Parsing of a single value: converted to the type of its key, or refused with a remedy."""

import math
import re
import types
import typing
from collections.abc import Sequence
from typing import Any

from scaling_fl.errors import UserError
from scaling_fl.text import is_text


def parse(field: Any, hint: Any, value: Any) -> Any:
    """Convert a value to the type of its field. Raises `UserError` if it has another type or is out of range."""
    original = value
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind, expected = kinds[0], field.metadata["expected"]
    if value == "" and field.metadata["may_be_empty"]:
        return None
    if isinstance(value, str) and kind in (int, float):  # YAML takes 1e-3 for text; it wants 1.0e-3
        value = _as_number(value, kind)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{field.name}={value!r}: expected True or False, with a capital letter and no quotes")
    elif kind is str:
        if not isinstance(value, str):
            raise UserError(f"{field.name}={value!r}: expected text; in a config file, put it in quotes")
        if not value.strip():
            raise UserError(
                f"{field.name}={value!r}: empty (an unset shell variable?); set a value, or leave the key out"
            )
        if not is_text(value):
            raise UserError(
                f"{field.name}={value!r}: expected UTF-8 text without NUL; correct it, or rename the file that it names"
            )
    elif kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{field.name}={value!r}: expected {expected}")
    elif kind is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(
                f"{field.name}={value!r}: expected {expected}, such as {field.name}={field.default or 0.01}"
            )
        value = float(value) if abs(value) < 2.0**1000 else math.inf  # float() overflows on larger integers
    else:  # tuple[int, ...]
        if type(value) is int and field.metadata["valid"]((value,)):
            raise UserError(f"{field.name}={value!r}: expected {expected}; write {field.name}=[{value}]")
        if not isinstance(value, Sequence) or not all(type(item) is int for item in value):
            raise UserError(f"{field.name}={value!r}: expected {expected}; write {list_like(field)}, without spaces")
        value = tuple(value)
    valid = field.metadata["valid"]
    if valid is not None and not valid(value):
        raise UserError(f"{field.name}={original!r}: expected {expected}")
    return value


def list_like(field: Any) -> str:
    """KEY=LIST as it is written in a command, with the example that the field's expected values name."""
    (example,) = re.findall(r"\[.+?\]", field.metadata["expected"])
    return f"{field.name}={example}"


def _as_number(text: str, kind: type[int] | type[float]) -> int | float | str:
    """The number that a text is; the text itself if it is none."""
    try:
        return kind(text)
    except ValueError:
        return text
