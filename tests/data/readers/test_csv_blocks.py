"""Blocks of CSV: what they accept, and every refusal, is what `csv.reader` makes of the same file."""

import csv
import io
import random
from pathlib import Path

import pytest

from scaling_fl.data.readers import csv_blocks, formats, separated, source
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
_HEADERS = ("text,label\n", "\ufefftext,label\r\n", '"text","label"\n', '"te\nxt",text,label\n', "\n \ntext,label\n")
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


def in_blocks_of(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read `size` bytes at once, their beginnings too."""
    monkeypatch.setattr(separated, "_BLOCK", size)
    monkeypatch.setattr(source, "_AHEAD", size)


def written(path: Path, text: str) -> None:
    path.write_text(text, "utf-8", "surrogateescape", newline="")


@pytest.mark.parametrize("block", [1, 5, 2**20])
@pytest.mark.parametrize("headerless", [None, ["text", "label"]])
def test_hostile_files_are_read_or_refused_as_by_the_careful_reader(
    block: int, headerless: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks_of(block, monkeypatch)
    path, rng, read, refused = tmp_path / "a.csv", random.Random(block), 0, 0
    for number in range(800):
        rows = "".join(f'"{number}{chr(97 + row)}",x\n' for row in range(rng.randint(0, 3)))
        hostile = "".join(rng.choices(_PIECES, k=rng.randint(0, 8)))
        written(path, f"{rng.choice(_HEADERS)}{rows}{hostile}{rng.choice(['', rows])}")
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
        data, end = file.getvalue().encode(), rng.choice([True, False])
        block = data if end else data[: rng.randint(0, len(data))]
        wanted = rng.sample(range(num_fields), rng.randint(1, num_fields))
        taken = csv_blocks.take(block, num_fields, wanted, last=end)
        assert taken is not None, data
        count = len(taken.columns[0])
        assert [list(row) for row in zip(*taken.columns, strict=True)] == [
            [row[position] for position in wanted] for row in rows[:count]
        ]
        file = io.StringIO(newline="")
        csv.writer(file, quoting=quoting, lineterminator=line_break).writerows(rows[:count])  # type: ignore[call-overload]
        assert data[: taken.length] == file.getvalue().encode()
        assert count == len(rows) or not end
        assert taken.num_lines == len(list(io.StringIO(file.getvalue(), newline="")))


@pytest.mark.parametrize(
    "text",
    ["a,b\nc\n", "a,b\n\nc,d\n", 'a "quoted" word,b\n', '"a"b,c\n', 'a,"b\n', "a,b\rc,d\r", ' "a",b\n', 'a,b""\n'],
    ids=ascii,
)
def test_what_is_not_plainly_written_is_left_to_the_careful_reader(text: str) -> None:
    assert csv_blocks.take(text.encode(), 2, [0], last=True) is None


def test_a_blank_line_is_no_empty_field() -> None:
    assert csv_blocks.take(b"a\n\nb\n", 1, [0], last=True) is None
    assert csv_blocks.take(b'a\n""\nb\n', 1, [0], last=True) == ([["a", "", "b"]], 7, 3)


def test_bytes_that_are_no_utf8_matter_in_wanted_fields_only() -> None:
    data = b"a,\xe9\nb,c\n"
    assert csv_blocks.take(data, 2, [1], last=True) is None
    assert csv_blocks.take(data, 2, [0], last=True) == ([["a", "b"]], len(data), 2)


def test_a_header_may_look_blank(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "\n \na\nb\n")
    start, rows, *_ = formats.batches(str(tmp_path / "a.csv"), "train_path", {" ": None})
    assert (start.num_blank, rows.columns, list(rows.numbers)) == (1, {" ": ["a", "b"]}, [3, 4])


def test_a_record_that_never_ends_is_not_searched_again_with_every_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_blocks_of(100, monkeypatch)
    monkeypatch.setattr(separated, "_LONGEST", 1000)
    calls, take = [], csv_blocks.take
    monkeypatch.setattr(csv_blocks, "take", lambda *arguments, **last: calls.append(1) or take(*arguments, **last))
    written(tmp_path / "a.csv", 'text,label\na,x\n"' + "b,\n" * 100_000)
    assert "a.csv, row 3, starting in line 3: unexpected end of data" in str(outcome(tmp_path / "a.csv", None))
    assert len(calls) == 9
    calls.clear()
    long = "b,\n" * 100
    written(tmp_path / "a.csv", "text,label\n" + f'"{long}",x\n' * 100)
    assert outcome(tmp_path / "a.csv", None) == ([(row, long, "x") for row in range(2, 102)], 0)
    assert len(calls) > 100


def test_errors_after_many_blocks_name_row_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(10, monkeypatch)
    beginning = "text,label\r\n" + '"a\nb\rc",x\r\n' * 50
    for row, error in (
        ("a,b,c", "row 52: expected 2 fields (text, label), found 3"),
        ('"a"b,c', "row 52, starting in line 152: ',' expected after '\"' in line 152"),
        ('"text","Label "', "row 52: it repeats the header"),
    ):
        written(tmp_path / "a.csv", f"{beginning}{row}\r\n{beginning}")
        assert error in str(outcome(tmp_path / "a.csv", None))


def test_lines_are_counted_as_text_files_count_them() -> None:
    text = '"a\nb\r\nc\rd\x0be\u2028f"\n'
    taken = csv_blocks.take(f"{text}more".encode(), 1, [0], last=False)
    assert taken is not None
    assert taken.num_lines == len(list(io.StringIO(text, newline=""))) == 4
