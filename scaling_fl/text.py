"""Checks on text that is read, and formatting of text that is shown."""

import itertools
import operator
import shutil
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

NOT_TEXT = "expected text, found a NUL or bytes that are not UTF-8; save the file as UTF-8 text"

_JOINERS = "\u200c\u200d"  # unprintable for Python, but part of words (Persian, Hindi) and of emoji


def is_text(value: str) -> bool:
    """Whether `value` is text, rather than decoded binary data or another encoding."""
    return "\0" not in value and (value.isascii() or _is_unicode(value))


def _is_unicode(value: str) -> bool:
    """Whether no character is a surrogate. The encoder looks several times faster than a regular expression."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def are_texts(values: Collection[str]) -> bool:
    """Whether `is_text` holds for all values; several times faster than one by one."""
    has_nul = any(map(operator.contains, values, itertools.repeat("\0")))
    return not has_nul and all(map(is_text, itertools.filterfalse(str.isascii, values)))


def one_line(text: str, width: int) -> str:
    """`text` on one line, cut to `width` columns, with unprintable characters (terminal controls) replaced."""
    line = _printable(text)
    if num_columns(line) <= width:
        return line
    ends = itertools.accumulate(map(num_columns, line))
    return f"{line[: sum(1 for _ in itertools.takewhile(lambda end: end <= width, ends))].rstrip()} …"


def num_columns(text: str) -> int:
    """The width of `text` in a terminal: East Asian characters and emoji take two columns, accents none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def padded(text: str, width: int, right: bool = False) -> str:
    """`text` with blanks behind it, or before it if it is to stand on the `right`, so that it takes `width` columns."""
    blanks = " " * (width - num_columns(text))
    return blanks + text if right else text + blanks


def blocks(widths: Sequence[int], room: int) -> Iterator[slice]:
    """Split the columns of a table into blocks of at most `room` characters, or of one column if that is wider."""
    start = used = 0
    for number, width in enumerate(widths):
        if number > start and used + width > room:
            yield slice(start, number)
            start, used = number, 0
        used += width
    yield slice(start, len(widths))


def _printable(text: str) -> str:
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    return "".join(c if c.isprintable() or c in _JOINERS else "�" for c in line)


def short_names(names: Sequence[str], width: int) -> list[str]:
    """Each name like `one_line`. If names would be cut to the same text, what they begin with is dropped instead.

    Names that still coincide are preceded by their index.
    """
    lines = list(map(_printable, names))
    short = [one_line(line, width) for line in lines]
    for text in repeated(short):
        group = [index for index, other in enumerate(short) if other == text]
        texts = [lines[index] for index in group]
        if len(set(texts)) == 1:
            continue
        alike = next(
            (n for n, found in enumerate(zip(*texts, strict=False)) if len(set(found)) > 1), min(map(len, texts))
        )
        start = texts[0].rfind(" ", 0, alike) + 1  # the beginning of a word
        while num_columns(texts[0][start:alike]) > width // 2:
            start += 1
        rest = short_names([line[start:] for line in texts], width)
        for index, of_name in zip(group, rest, strict=True):
            short[index] = f"… {of_name.removeprefix('… ')}"
    again = repeated(short)
    return [f"{index}: {text}" if text in again else text for index, text in enumerate(short)]


def repeated(values: Sequence[str]) -> list[str]:
    """The values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def wrapped(text: str, width: int) -> str:
    """The lines of `text`; those that take more than `width` columns are broken between words, and indented."""
    wrap = textwrap.TextWrapper(
        width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False, expand_tabs=False,
        replace_whitespace=False,
    )  # fmt: skip
    return "\n".join(line if num_columns(line) <= width else wrap.fill(line) for line in text.split("\n"))


def for_stderr(text: str) -> str:
    """`text`, wrapped if stderr is a terminal."""
    return wrapped(text, shutil.get_terminal_size().columns) if sys.stderr.isatty() else text
