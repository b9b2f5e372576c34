"""Checks on text that is read, and formatting of text that is shown."""

import re
from collections import Counter
from collections.abc import Sequence

NOT_TEXT = "expected text, found a NUL or bytes that are not UTF-8; save the file as UTF-8 text"

_SURROGATE = re.compile("[\ud800-\udfff]")


def is_text(value: str) -> bool:
    """Whether `value` is text, rather than decoded binary data or another encoding."""
    return "\0" not in value and (value.isascii() or _SURROGATE.search(value) is None)


def one_line(text: str, width: int) -> str:
    """`text` on one line, cut to `width` characters, with unprintable ones (terminal controls) replaced."""
    line = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    return line if len(line) <= width else f"{line[:width]} …"


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Each name like `one_line`. If names would be cut to the same text, what they begin with is dropped instead.

    Names that still coincide are preceded by their index.
    """
    lines = [one_line(name, max(1, len(name))) for name in names]
    short = [one_line(line, width) for line in lines]
    for text in repeated(short):
        group = [index for index, other in enumerate(short) if other == text]
        texts = [lines[index] for index in group]
        if len(set(texts)) == 1:
            continue
        alike = next(
            (n for n, found in enumerate(zip(*texts, strict=False)) if len(set(found)) > 1), min(map(len, texts))
        )
        start = max(texts[0].rfind(" ", 0, alike) + 1, alike - width // 2)  # from the beginning of a word
        rest = short_names([line[start:] for line in texts], width)
        for index, of_name in zip(group, rest, strict=True):
            short[index] = f"… {of_name.removeprefix('… ')}"
    again = repeated(short)
    return [f"{index}: {text}" if text in again else text for index, text in enumerate(short)]


def repeated(values: Sequence[str]) -> list[str]:
    """The values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]
