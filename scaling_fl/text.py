"""Checks on text that is read, and formatting of text that is shown."""

import re

NOT_TEXT = "expected text, found a NUL or bytes that are not UTF-8; save the file as UTF-8 text"

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(value: str) -> bool:
    """Whether `value` is text, rather than decoded binary data or another encoding."""
    return "\0" not in value and (value.isascii() or _SURROGATE.search(value) is None)


def one_line(text: str, width: int) -> str:
    """`text` on one line, cut to `width` characters, with unprintable ones (terminal controls) replaced."""
    line = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    return line if len(line) <= width else f"{line[:width]} …"
