"""Tables: the rows of one or several files as columns of texts and labels. Errors name file, row and column."""

import re
import unicodedata
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl.config.schema import Config
from scaling_fl.data.readers import formats
from scaling_fl.data.readers.batches import Wanted
from scaling_fl.data.readers.paths import expand
from scaling_fl.data.readers.separated import OTHER_COLUMNS
from scaling_fl.errors import UserError
from scaling_fl.text import NOT_TEXT, are_texts, is_text, one_line

# Characters that are drawn alike: dashes and the minus sign, apostrophes, quotation marks.
_DRAWN_ALIKE = str.maketrans(
    dict.fromkeys("‐‑‒–—―−﹘﹣－", "-") | dict.fromkeys("‘’‛ʼ`´′", "'") | dict.fromkeys("“”„‟″", '"')
)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u3164\ufe00-\ufe0f]")  # besides the category Cf

_NO_LABEL = "the label is empty; fill it in, or remove the row"


@dataclass(frozen=True)
class Table:
    """The wanted columns of all files, N values each: text, or values of any type from JSON lines and Parquet."""

    columns: dict[str, list[Any]]
    files: list[tuple[str, Sequence[int]]]  # each file's path and row numbers
    notes: tuple[str, ...] = ()
    headerless: Sequence[str] | None = None  # the columns, if the files may lack a header

    def location(self, index: int, column: str) -> str:
        """The file, row and column of a value, for messages."""
        for path, numbers in self.files:
            if index < len(numbers):
                return f"{path}, row {numbers[index]}, column {column}"
            index -= len(numbers)
        raise IndexError(index)

    def texts(self, column: str) -> list[str]:
        """The column as texts, which may be empty. Raises `UserError` at the first value that is not text."""
        texts = self.columns[column]
        if set(map(type, texts)) == {str} and are_texts(texts):
            return texts
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                what = "nothing" if text is None else type(text).__name__
                raise UserError(f"{self.location(index, column)}: expected text, found {what}")
            self._check_encoding(index, column, text)
        return texts

    def labels(self, column: str) -> list[str]:
        """The column as labels: words or whole numbers, stripped of surrounding spaces; 1.0 equals 1.

        Raises `UserError` at the first label that is missing, or neither a word nor a whole number, or if the labels are
        decimal numbers.
        """
        labels = self._strings(column, _NO_LABEL)
        numbers = {label: _parse_number(label) for label in set(labels)}
        decimals = {label for label, number in numbers.items() if number is not None and not _is_whole(number)}
        if len(decimals) > 1 or (decimals and None not in numbers.values()):
            index = next(index for index, label in enumerate(labels) if label in decimals)
            raise UserError(
                f"{self.location(index, column)}: the label is the number {labels[index]}; predicting decimal "
                "numbers is regression, which is not supported; convert them to classes, such as low and high"
            )
        return labels

    def sites(self, column: str | None) -> list[str] | None:
        """The site of each row, parsed like labels; None if there is no column of sites."""
        if column is None or column not in self.columns:
            return None
        return self._strings(column, "the value is empty, so the row belongs to no site; fill it in, or remove the row")

    def _strings(self, column: str, if_empty: str) -> list[str]:
        values = self.columns[column]
        if set(map(type, values)) == {str}:  # few different ones, as a rule: each is looked at once
            distinct = {value: value.strip() for value in set(values)}
            if all(distinct.values()) and are_texts(distinct):
                words_of = {value: _normalised(word) for value, word in distinct.items()}
                return [words_of[value] for value in values]
        words = []
        for index, value in enumerate(values):
            if isinstance(value, str):
                value = value.strip()
            if value is None or value == "" or value != value:  # the last: NaN
                raise UserError(f"{self.location(index, column)}: {if_empty}")
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"{self.location(index, column)}: expected a word or a whole number, found {type(value).__name__}"
                )
            words.append(_normalised(str(value)))
            self._check_encoding(index, column, words[-1])
        return words

    def _check_encoding(self, index: int, column: str, value: str) -> None:
        if not is_text(value):
            raise UserError(f"{self.location(index, column)}: {NOT_TEXT}")

    def classes(
        self, column: str, names: Mapping[str, int], known_from: str | None = None, exact: bool = False
    ) -> npt.NDArray[np.int64]:
        """The column's labels as class numbers (N,). `names`: number of each class; `known_from`: their source.

        `exact`: the column holds names verbatim, so numbers are not normalised. Raises `UserError` at unknown labels.
        """
        labels = self.columns[column] if exact else self.labels(column)
        index = next((index for index, label in enumerate(labels) if label not in names), None)
        if index is None:
            return np.fromiter(map(names.__getitem__, labels), np.int64, len(labels))
        label = labels[index]
        if label is None:
            what = _NO_LABEL
        elif known_from is None:
            what = self._unknown(index, labels, names)
        else:
            alike = [name for name in names if _fold(name) == _fold(label)]
            this, *others = _told_apart([label, *alike[:1]])
            what = (
                f"the label {this} doesn't occur in {known_from}{f' (but {others[0]} does)' if others else ''}, "
                "so no site can learn it; correct it, or remove the row"
            )
        raise UserError(f"{self.location(index, column)}: {what}")

    def _unknown(self, index: int, labels: list[str], names: Mapping[str, int]) -> str:
        """What is wrong with a label that is not one of the fixed `names`, and the remedy."""
        found, expected = labels[index], " or ".join(names)
        first_row = self.location(index, "").endswith(", row 1, column ")
        if self.headerless is not None and first_row and labels.count(found) == 1 and _parse_number(found) is None:
            fields = ", ".join(str(column[index]) for column in self.columns.values())
            return (
                f"expected the header {','.join(self.headerless)} or a label ({expected}), found {one_line(fields, 100)}; "
                f"{OTHER_COLUMNS}"
            )
        one_less = {str(int(name) - 1) for name in names if name.isdecimal()}
        shifted = len(one_less) == len(names) and {min(one_less)} < set(labels) <= one_less
        remedy = f"the labels seem to count from {min(one_less)}: add 1 to each" if shifted else "correct it"
        return f"expected {expected}, found {found!r}; {remedy}, or use task_name=csv, which takes any labels"


def read(paths: str, key: str, wanted: Wanted, headerless: Sequence[str] | None = None) -> Table:
    """Read the wanted columns of the files that the configuration key `key` names.

    Raises `UserError` if a file can't be read as rows of text; see `formats.batches` for `headerless`.
    """
    kept: dict[str, list[Any]] = {}
    files, notes = list[tuple[str, Sequence[int]]](), list[str]()
    expanded = expand(paths, key)
    remedy = "name another" + ", or remove it from the list" * (len(expanded) > 1)
    for path in expanded:
        numbers, num_blank, has_columns = array("q"), 0, False
        for batch in formats.batches(path, key, wanted, headerless):
            for name, values in batch.columns.items():
                kept.setdefault(name, []).extend(values)
                has_columns = True
            numbers.extend(batch.numbers)
            num_blank += batch.num_blank
        if not has_columns:
            raise UserError(f"{key}={path!r}: the file is empty; {remedy}")
        if not numbers:
            raise UserError(f"{key}={path!r}: it has columns, but no rows; {remedy}")
        if num_blank:
            notes.append(f"{path}: {num_blank} blank line{'s' * (num_blank > 1)} skipped")
        files.append((path, numbers))
    return Table(kept, files, tuple(notes), headerless)


def wanted(config: Config, key: str, columns: Wanted) -> dict[str, str | None]:
    """The columns to read from the files that `key` names; for training files, `partition_column` is added."""
    training = key in ("train_path", "train_split")
    sites = {config.partition_column: "partition_column"} if training and config.partition_column is not None else {}
    return sites | dict(columns)


def class_numbers(labels: set[str]) -> dict[str, int]:
    """Class numbers: labels in numerical order if all are numbers, else in alphabetical order."""
    if all(_parse_number(label) is not None for label in labels):
        return {label: n for n, label in enumerate(sorted(labels, key=lambda label: (Decimal(label), label)))}
    return {label: n for n, label in enumerate(sorted(labels))}


def look_alikes(setting: str, names: Iterable[str]) -> list[str]:
    """Notes on names that are different, but look alike: 01 and 1, True and TRUE, an accent composed or decomposed.

    So do names with different dashes or quotation marks, or with invisible characters.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_fold(name), []).append(name)
    alike = [" and ".join(_told_apart(group)) for group in groups.values() if len(group) > 1]
    more = f" (and {len(alike) - 3:,} more such groups)" if len(alike) > 3 else ""
    said = "; ".join(alike[:3])
    return (
        [f"{setting}: {said}{more} look alike, but count as different; if they mean the same, write them alike"]
        if alike
        else []
    )


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names in quotes, with escapes if they are drawn alike."""
    return list(map(ascii if len(set(map(_drawn, names))) < len(names) else repr, names))


def _drawn(name: str) -> str:
    """What a reader sees of a name."""
    visible = (character for character in name if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFKC", _INVISIBLE.sub("", "".join(visible))).translate(_DRAWN_ALIKE)


def _fold(name: str) -> str:
    """What names that look alike have in common."""
    number = _parse_number(_drawn(name))
    return " ".join(_drawn(name).casefold().split()) if number is None else str(number.normalize())


def _normalised(label: str) -> str:
    """The label, with whole numbers such as 1.0 as 1: programs write 1.0 if a column had missing values."""
    number = _parse_number(label) if "." in label else None
    return label if number is None or not _is_whole(number) or number.adjusted() > 18 else str(int(number))


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def _parse_number(label: str) -> Decimal | None:
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
