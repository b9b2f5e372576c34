import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl.errors import UserError
from scaling_fl.tasks import tables


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_quotes_newlines_and_a_byte_order_mark_are_read_as_rfc_4180_says(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufefflabel,text\r\n1,"say ""hi"", then\r\nleave"\r\n2, ä\u2028b \r\n'.encode())
    table = tables.read(path, "train_path")
    assert table.header == ["label", "text"]
    assert table.column("text", "text_column") == ['say "hi", then\r\nleave', " ä\u2028b "]
    assert table.rows == [2, 3]


def test_a_headerless_file_is_known_by_its_first_row(tmp_path: Path) -> None:
    with_header = tables.read(write(tmp_path / "a.csv", b"n,t\n1,x\n"), "train_path", headerless=["n", "t"])
    without = tables.read(write(tmp_path / "b.csv", b'"1","x"\n'), "train_path", headerless=["n", "t"])
    assert with_header.records == without.records == [["1", "x"]]
    assert (with_header.rows, without.rows) == ([2], [1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "train_path='{path}': the file is empty"),
        (b"a,b\n1,2\n3\n", "{path}, row 3: expected 2 fields (a, b), found 1"),
        (b"\na,b\n\n1,2\n\n3\n", "{path}, row 6: expected 2 fields (a, b), found 1"),
        (b"a,b\n1,2,3\n", "{path}, row 2: expected 2 fields (a, b), found 3"),
        (b'a,b\n1,"open\n2,3\n', "{path}, line 3: unexpected end of data"),
        (b'a,b\n1,"x" y\n', "{path}, line 2: ',' expected after '\"'"),
        (b"a,b\n1,2\n3,caf\xe9\n", "{path}, row 3, field 2: it is not UTF-8 text"),
        (b"\xff\xfea\x00,\x00b\x00", "{path}, row 1, field 1: it is not UTF-8 text"),
        (b"a,b\n1,x\x00y\n", "{path}, row 2, field 2: it is not UTF-8 text"),
    ],
)
def test_a_broken_file_is_refused_by_file_row_and_column(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path / "t.csv", content)
    with pytest.raises(UserError) as error:
        tables.read(path, "train_path")
    assert message.format(path=path) in str(error.value)


def test_what_can_not_be_opened_is_named_by_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_path='/no/such\.csv': there is no such file"):
        tables.read("/no/such.csv", "test_path")
    with pytest.raises(UserError, match=rf"test_path='{tmp_path}': it can't be read"):
        tables.read(str(tmp_path), "test_path")
    with pytest.raises(UserError, match="test_path='nope://x': it can't be read"):
        tables.read("nope://x", "test_path")
    with pytest.raises(UserError, match="test_path: this task needs it"):
        tables.read(None, "test_path")


def test_a_compressed_file_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv.gz", gzip.compress(b"a,b\n1,x\n"))
    assert tables.read(path, "train_path").records == [["1", "x"]]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    table = tables.read(write(tmp_path / "t.csv", b"a,b,a\n1,2,3\n"), "train_path")
    with pytest.raises(UserError, match=r"text_column='a': .* has 2 columns of this name"):
        table.column("a", "text_column")


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    table = tables.read(write(tmp_path / "t.csv", b"a,b\n1,2\n"), "train_path")
    with pytest.raises(UserError, match=r"text_column='c': .* has no such column; it has a, b"):
        table.column("c", "text_column")


field = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(field, field), min_size=1, max_size=8))
def test_what_the_csv_module_writes_comes_back(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    import csv

    path = tmp_path / "t.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("a", "b"), *rows])
    assert tables.read(str(path), "train_path").records == [list(row) for row in rows]
