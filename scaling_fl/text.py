"""Text as it is read, and as it is shown."""

import re

NOT_TEXT = "it holds what is no text: a NUL, or bytes that are not UTF-8; save the file as UTF-8 text"


_SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(value: str) -> bool:
    """Whether it is text, and not binary data or another encoding read as such."""
    return "\0" not in value and (value.isascii() or _SURROGATE.search(value) is None)


def one_line(text: str, width: int) -> str:
    """On one line, cut, and without what would command a terminal."""
    line = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    return line if len(line) <= width else f"{line[:width]} …"
