import itertools
import sys
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl.text import blocks, for_stderr, num_columns, one_line, padded, short_names, wrapped


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
        (["Business Categories", "Business Categories of all kinds"], ["… tegories", "… tegories of all …"]),
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


@given(st.lists(st.text("ab 新\u0301", max_size=60), max_size=12), st.integers(8, 20))
def test_names_that_differ_are_shown_differently(names: list[str], width: int) -> None:
    shown = short_names(names, width)
    lines = [one_line(name, 1000) for name in names]
    assert all(num_columns(text) <= width + 9 for text in shown)
    for i in range(len(lines)):
        for j in range(i):
            assert (shown[i] == shown[j]) <= (lines[i] == lines[j]), (names, shown)


def test_widths_are_those_of_a_terminal() -> None:
    assert list(map(num_columns, ("ab", "新闻", "e\u0301", "a\u200db", "👍"))) == [2, 4, 1, 2, 2]
    assert (padded("新闻", 6), padded("新闻", 6, right=True)) == ("新闻  ", "  新闻")
    assert (one_line("新闻新闻", 5), one_line("one two", 4), one_line("新闻", 4)) == ("新闻 …", "one …", "新闻")
    assert one_line("cafe\u0301 au lait", 4) == "caf\u00e9 …", "composed"


def test_letters_of_a_word_stay_joined_and_controls_do_not_pass() -> None:
    assert one_line("می\u200cخواهم \x1b[2J\u202e", 20) == "می\u200cخواهم �[2J�"


@given(st.lists(st.integers(1, 30), min_size=1), st.integers(1, 60))
def test_blocks_hold_all_columns_and_as_many_as_fit(widths: list[int], room: int) -> None:
    parts = list(blocks(widths, room))
    assert [width for part in parts for width in widths[part]] == widths
    for part in parts:
        assert sum(widths[part]) <= room or len(widths[part]) == 1
    for part, following in itertools.pairwise(parts):
        assert sum(widths[part]) + widths[following][0] > room


@pytest.mark.parametrize("width", [20, 60, 80])
def test_long_lines_are_broken_between_words_and_short_ones_are_kept(width: int) -> None:
    text = "interrupted; round 3 is saved in checkpoints/news: run the same command again to resume\n  two  words\n"
    lines = wrapped(text, width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert [word for line in lines for word in line.split()] == text.split()
    assert lines[-1] == "  two  words"
    assert all(line.startswith("  ") for line in lines[1:])


def test_a_path_that_fits_a_line_of_its_own_is_not_broken() -> None:
    path = "checkpoints/20261127-005149-f920/round-000001.safetensors"
    assert wrapped(f"checkpoint   {path}", 60) == f"checkpoint\n  {path}"


@pytest.mark.parametrize(
    ("terminal", "shown"), [(True, "one two three four\n  five six"), (False, "one two three four five six")]
)
def test_messages_are_broken_in_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str) -> None:
    """A program that reads them looks for whole lines."""
    monkeypatch.setattr(sys, "stderr", Mock(isatty=lambda: terminal))
    monkeypatch.setenv("COLUMNS", "20")
    assert for_stderr("one two three four five six") == shown
