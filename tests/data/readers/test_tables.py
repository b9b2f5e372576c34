from collections.abc import Sequence
from typing import Any

import pytest

from scaling_fl.data.readers import tables
from scaling_fl.errors import UserError


def table(*values: Any, rows: Sequence[int] = range(1, 100)) -> tables.Table:
    return tables.Table({"label": list(values)}, [("f.csv", rows[: len(values)])])


def test_a_value_is_located_by_file_row_and_column() -> None:
    two = tables.Table({"a": list("xyz")}, [("one.csv", [2, 5]), ("two.csv", [3])])
    assert [two.location(i, "a") for i in range(3)] == [
        "one.csv, row 2, column a",
        "one.csv, row 5, column a",
        "two.csv, row 3, column a",
    ]


def test_labels_are_words_or_whole_numbers_in_any_notation() -> None:
    assert table("a", 1, True, "2.0", 3.0, " x ").labels("label") == ["a", "1", "True", "2", "3", "x"]
    assert table("0.5", "half").labels("label") == ["0.5", "half"], "one number among names: a name"
    assert table(1.0, "1.00", 1, "-0.0", 3).labels("label") == ["1", "1", "1", "0", "3"], "as pandas writes them"
    assert table("1e300", "1.5e999999", "007").labels("label") == ["1e300", "1.5e999999", "007"]
    longest = "15" + "0" * 17  # of 19 digits, as 64 bits hold
    assert table("1.5e18", "1.5e19", "x").labels("label") == [longest, "1.5e19", "x"]


@pytest.mark.parametrize(
    ("values", "place", "number"),
    [
        ((1, 0.5, 2), 2, "0.5"),
        (("0.5", "n/a", "0.7"), 1, "0.5"),
        ((0.5, 0.7, "nan"), 1, "0.5"),
        (("3", "4.25"), 2, "4.25"),
        ((1e-05, 1), 1, "1e-05"),
        (("-0.5", "-1"), 1, "-0.5"),
    ],
)
def test_decimal_numbers_are_refused_as_regression(values: tuple[Any, ...], place: int, number: str) -> None:
    with pytest.raises(UserError) as error:
        table(*values).labels("label")
    assert f"f.csv, row {place}, column label: the label is the number {number}" in str(error.value)
    assert "is regression" in str(error.value)


@pytest.mark.parametrize("missing", [None, "", "  ", float("nan")])
def test_a_missing_label_is_refused(missing: Any) -> None:
    with pytest.raises(UserError, match=r"f\.csv, row 2, column label: the label is empty"):
        table("a", missing).labels("label")


def test_classes_are_numbered_in_numerical_or_alphabetical_order() -> None:
    assert tables.class_numbers({"10", "9", "-1", "09", "2.5e1"}) == {"-1": 0, "09": 1, "9": 2, "10": 3, "2.5e1": 4}
    assert tables.class_numbers({"b", "10", "9"}) == {"10": 0, "9": 1, "b": 2}
    assert table("b", "a", "b").classes("label", {"a": 0, "b": 1}).tolist() == [1, 0, 1]


def test_unknown_labels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"f\.csv, row 2, column label: expected a or b, found 'c'"):
        table("a", "c").classes("label", {"a": 0, "b": 1})
    with pytest.raises(UserError, match=r"row 1, column label: the label 'c' doesn't occur in train\.csv"):
        table("c").classes("label", {"a": 0, "b": 1}, known_from="train.csv")
