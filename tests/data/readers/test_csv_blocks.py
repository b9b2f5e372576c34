"""Blocks of CSV: what they accept, and every refusal, is what `csv.reader` makes of the same file."""

import csv
import io
import random
from pathlib import Path

import pytest

from scaling_fl.data.readers import csv_blocks, formats, separated
from scaling_fl.errors import UserError

_PIECES = (
    '"',
    '""',
    ",",
    "\n",
    "\r\n",
    "\r",
    " ",
    "a",
    "é",
    "\udc80",
    "\0",
    "\x85",
    "\u2028",
    "\ufeff",
    ";",
    "text",
    "label",
)
_PLAIN = ("a", "text", "b c", ",", "\n", "\r\n", '"', '""', "é", "'", "\0", "\x0b", "\u2028", "5")


def outcome(path: Path, headerless: list[str] | None) -> object:
    """The rows of a file with their numbers, or the refusal."""
    wanted = dict.fromkeys(("text", "label"))
    try:
        read = list(formats.batches(str(path), "train_path", wanted, headerless))
    except UserError as error:
        return str(error)
    rows = [row for batch in read if batch.numbers for row in zip(batch.numbers, *batch.columns.values(), strict=True)]
    return rows, sum(batch.num_blank for batch in read)


def written(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", "surrogateescape", newline="")


@pytest.mark.parametrize("block", [1, 5, 2**20])
@pytest.mark.parametrize("headerless", [None, ["text", "label"]])
def test_hostile_files_are_read_or_refused_as_by_the_careful_reader(
    block: int, headerless: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separated, "_BLOCK", block)
    path, rng, read, refused = tmp_path / "a.csv", random.Random(block), 0, 0
    for number in range(800):
        rows = "".join(f'"{number}{chr(97 + row)}",x\n' for row in range(rng.randint(0, 3)))
        hostile = "".join(rng.choices(_PIECES, k=rng.randint(0, 8)))
        written(path, f"text,label\n{rows}{hostile}{rng.choice(['', rows])}")
        found = outcome(path, headerless)
        with monkeypatch.context() as careful:
            careful.setattr(csv_blocks, "take", lambda *arguments, **last: None)
            assert found == outcome(path, headerless), path.read_bytes()
        read, refused = read + isinstance(found, tuple), refused + isinstance(found, str)
    assert min(read, refused) > 100


@pytest.mark.parametrize("num_fields", [1, 2, 5])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_whatever_a_csv_writer_writes_is_taken_in_blocks(num_fields: int, quoting: int, line_break: str) -> None:
    rng = random.Random(num_fields)
    for _ in range(200):
        rows = [
            ["".join(rng.choices(_PLAIN, k=rng.randint(0, 5))) for _ in range(num_fields)]
            for _ in range(rng.randint(1, 9))
        ]
        file = io.StringIO(newline="")
        csv.writer(file, quoting=quoting, lineterminator=line_break).writerows(rows)  # type: ignore[call-overload]
        text, end = file.getvalue(), rng.choice([True, False])
        beginning = text[: rng.randint(0, len(text))]
        taken = csv_blocks.take(text if end else beginning, num_fields, last=end)
        assert taken is not None, text
        columns, rest = taken
        assert [list(row) for row in zip(*columns, strict=True)] == rows[: len(columns[0])]
        assert len(columns[0]) == len(rows) if end else beginning.endswith(rest)


@pytest.mark.parametrize(
    "text",
    ["a,b\nc\n", "a,b\n\nc,d\n", 'a "quoted" word,b\n', '"a"b,c\n', 'a,"b\n', "a,b\rc,d\r", ' "a",b\n', 'a,b""\n'],
    ids=ascii,
)
def test_what_is_not_plainly_written_is_left_to_the_careful_reader(text: str) -> None:
    assert csv_blocks.take(text, 2, last=True) is None


def test_a_blank_line_is_no_empty_field() -> None:
    assert csv_blocks.take("a\n\nb\n", 1, last=True) is None
    assert csv_blocks.take('a\n""\nb\n', 1, last=True) == ([["a", "", "b"]], "")


def test_a_header_may_look_blank(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "\n \na\nb\n")
    start, rows, *_ = formats.batches(str(tmp_path / "a.csv"), "train_path", {" ": None})
    assert (start.num_blank, rows.columns, list(rows.numbers)) == (1, {" ": ["a", "b"]}, [3, 4])


def test_a_record_that_never_ends_is_not_searched_again_with_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(separated, "_BLOCK", 100)
    monkeypatch.setattr(separated, "_LONGEST", 1000)
    calls, take = [], csv_blocks.take
    monkeypatch.setattr(csv_blocks, "take", lambda *arguments, **last: calls.append(1) or take(*arguments, **last))
    written(tmp_path / "a.csv", 'text,label\na,x\n"' + "b,\n" * 100_000)
    assert "a.csv, row 3, starting in line 3: unexpected end of data" in str(outcome(tmp_path / "a.csv", None))
    assert len(calls) == 10
    calls.clear()
    long = "b,\n" * 100
    written(tmp_path / "a.csv", "text,label\n" + f'"{long}",x\n' * 100)
    assert outcome(tmp_path / "a.csv", None) == ([(row, long, "x") for row in range(2, 102)], 0)
    assert len(calls) > 100


def test_errors_after_many_blocks_name_row_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(separated, "_BLOCK", 10)
    beginning = "text,label\r\n" + '"a\nb\rc",x\r\n' * 50
    for row, error in (
        ("a,b,c", "row 52: expected 2 fields (text, label), found 3"),
        ('"a"b,c', "row 52, starting in line 152: ',' expected after '\"' in line 152"),
        ('"text","Label "', "row 52: it repeats the header"),
    ):
        written(tmp_path / "a.csv", f"{beginning}{row}\r\n{beginning}")
        assert error in str(outcome(tmp_path / "a.csv", None))


def test_lines_are_counted_as_text_files_count_them() -> None:
    text = "a\nb\r\nc\rd\x0be\u2028f\n"
    assert csv_blocks.num_lines(text) == len(list(io.StringIO(text, newline=""))) == 4
