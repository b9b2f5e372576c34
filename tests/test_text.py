import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl.text import one_line, short_names


def test_names_that_fit_or_differ_early_are_shown_from_their_beginning() -> None:
    assert short_names(["sea", "a very long name of a town", "a\nb"], 16) == ["sea", "a very long name …", "a b"]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (
            ["Business Categories: Food", "Business Categories: Forestry and more"],
            ["… Food", "… Forestry and mor …"],
        ),
        # One is the beginning of the other; and no blank to cut at.
        (["Business Categories", "Business Categories of all kinds"], ["… tegories", "… tegories of all  …"]),
        (["x" * 40 + "a", "x" * 40 + "b"], ["… xxxxxxxxa", "… xxxxxxxxb"]),
        # What they share in the second place goes as well.
        (
            ["All the categories: one and the same thing A", "All the categories: one and the same thing B", "All the categories: C"],
            ["… A", "… B", "… C"],
        ),
        # Two groups whose ends are the same.
        (
            ["Home and Garden: all", "Home and Garden: pots", "Toys for Children: all", "Toys for Children: pots"],
            ["0: … all", "1: … pots", "2: … all", "3: … pots"],
        ),
    ],
)  # fmt: skip
def test_names_that_begin_alike_show_what_differs(names: list[str], shown: list[str]) -> None:
    assert short_names(names, 16) == shown


@given(st.lists(st.text("ab ", max_size=60), max_size=12), st.integers(8, 20))
def test_names_that_differ_are_shown_differently(names: list[str], width: int) -> None:
    shown = short_names(names, width)
    lines = [one_line(name, 1000) for name in names]
    assert all(len(text) <= width + 9 for text in shown)
    for i in range(len(lines)):
        for j in range(i):
            assert (shown[i] == shown[j]) <= (lines[i] == lines[j]), (names, shown)
