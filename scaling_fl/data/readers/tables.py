"""Rows of one or several files as columns of texts and labels. What is wrong is named by file, row and column."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl.config.schema import Config
from scaling_fl.data.readers import formats
from scaling_fl.errors import UserError
from scaling_fl.text import NOT_TEXT, is_text


@dataclass(frozen=True)
class Table:
    """The wanted columns of all files, N values each: text, but in JSON lines and Parquet whatever stands there."""

    columns: dict[str, list[Any]]
    files: list[tuple[str, Sequence[int]]]  # each file's path, and the numbers of its rows
    notes: tuple[str, ...] = ()

    def place(self, index: int, column: str) -> str:
        """Where a value stands, for messages: file, row, column."""
        for path, numbers in self.files:
            if index < len(numbers):
                return f"{path}, row {numbers[index]}, column {column}"
            index -= len(numbers)
        raise IndexError(index)

    def texts(self, column: str) -> list[str]:
        """The column as texts; an empty text is one."""
        texts = self.columns[column]
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                what = "nothing" if text is None else type(text).__name__
                raise UserError(f"{self.place(index, column)}: expected text, found {what}")
            self._check_encoding(index, column, text)
        return texts

    def labels(self, column: str) -> list[str]:
        """The column as labels, which may be words or whole numbers; blanks around them don't count, and 1.0 is 1.

        Raises `UserError` at the first that is missing, or neither; and where several have decimals: regression.
        """
        labels = self._words(column, "the label is empty")
        numbers = {label: _number(label) for label in set(labels)}
        decimals = {label for label, number in numbers.items() if number is not None and not _is_whole(number)}
        if len(decimals) > 1 or (decimals and None not in numbers.values()):
            index = next(index for index, label in enumerate(labels) if label in decimals)
            raise UserError(
                f"{self.place(index, column)}: the label is the number {labels[index]}; to predict numbers with decimals "
                "is regression, and this program classifies: make classes of them, such as low and high"
            )
        return labels

    def sites(self, column: str | None) -> list[str] | None:
        """Whose each row is: words or numbers, read as labels are; None where no column is wanted that tells."""
        if column is None or column not in self.columns:
            return None
        return self._words(column, "it is empty, so that the row belongs to no site; fill it in, or take the row out")

    def _words(self, column: str, if_empty: str) -> list[str]:
        words = []
        for index, value in enumerate(self.columns[column]):
            if isinstance(value, str):
                value = value.strip()
            if value is None or value == "" or value != value:  # the last: a float that is not a number
                raise UserError(f"{self.place(index, column)}: {if_empty}")
            if not isinstance(value, str | int | float):
                raise UserError(
                    f"{self.place(index, column)}: expected a word or a whole number, found {type(value).__name__}"
                )
            words.append(_whole(str(value)))
            self._check_encoding(index, column, words[-1])
        return words

    def _check_encoding(self, index: int, column: str, value: str) -> None:
        if not is_text(value):
            raise UserError(f"{self.place(index, column)}: {NOT_TEXT}")

    def classes(
        self, column: str, names: Mapping[str, int], known_from: str | None = None, exact: bool = False
    ) -> npt.NDArray[np.int64]:
        """The column's labels as class numbers (N,). Those that `names`, the labels in `known_from`, lacks are refused.

        `exact`: the column holds names as they are, and no numbers in any writing.
        """
        labels = self.columns[column] if exact else self.labels(column)
        for index, label in enumerate(labels):
            if label not in names:
                what = f"expected {' or '.join(names)}, found {label!r}"
                if known_from is not None:
                    what = f"the label {label!r} doesn't occur in {known_from}, so that no site can learn it"
                raise UserError(f"{self.place(index, column)}: {'the label is empty' if label is None else what}")
        return np.array([names[label] for label in labels], np.int64)


def read(paths: str, key: str, wanted: formats.Wanted, headerless: Sequence[str] | None = None) -> Table:
    """Read the wanted columns of the files that the configuration key `key` names.

    Raises `UserError` for what can't be read as rows of text; see `formats.rows` for `headerless`.
    """
    kept: dict[str, list[Any]] = {}
    files, notes = list[tuple[str, Sequence[int]]](), list[str]()
    for path in formats.expand(paths, key):
        numbers, num_blank = array("q"), 0
        columns: list[tuple[str, list[Any]]] = []
        for number, values in formats.rows(path, key, wanted, headerless):
            if values is None:
                num_blank += 1
            elif not columns:
                columns = [(name, kept.setdefault(name, [])) for name in values]
            else:
                for (_, column), value in zip(columns, values, strict=True):
                    column.append(value)
                numbers.append(number)
        if not columns:
            raise UserError(f"{key}={path!r}: the file is empty")
        if not numbers:
            raise UserError(f"{key}={path!r}: it has columns ({', '.join(dict(columns))}), but not a single row")
        if num_blank:
            notes.append(f"{path}: {num_blank} blank line{'s' * (num_blank > 1)} skipped")
        files.append((path, numbers))
    return Table(kept, files, tuple(notes))


def wanted(config: Config, key: str, columns: formats.Wanted) -> dict[str, str | None]:
    """These columns of the files that `key` names, and of those for training the one that tells whose a row is."""
    training = key in ("train_path", "train_split")
    sites = {config.partition_column: "partition_column"} if training and config.partition_column is not None else {}
    return sites | dict(columns)


def in_order(labels: set[str]) -> dict[str, int]:
    """Class numbers: labels in numerical order if all are numbers, else alphabetically; the same in every run."""
    if all(_number(label) is not None for label in labels):
        return {label: n for n, label in enumerate(sorted(labels, key=lambda label: (Decimal(label), label)))}
    return {label: n for n, label in enumerate(sorted(labels))}


def _whole(label: str) -> str:
    """The label, but a whole number without point and exponent: programs write 1 as 1.0 where a column had gaps."""
    number = _number(label) if "." in label else None
    return label if number is None or not _is_whole(number) or number.adjusted() > 18 else str(int(number))


def _is_whole(number: Decimal) -> bool:
    return number == number.to_integral_value()


def _number(label: str) -> Decimal | None:
    try:
        number = Decimal(label)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None
