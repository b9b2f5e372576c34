"""Well-formed files of rows, read through `tables.read` as tasks read them."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl.data.readers import tables
from tests.data.readers.files import WANTED, columns, write


def test_csv_follows_rfc_4180_with_byte_order_mark_and_crlf(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '\ufefflabel,text\r\n1,"say ""hi"", then\r\nleave"\r\n2, ä\u2028b \r\n'.encode())
    assert columns(path) == {"text": ['say "hi", then\r\nleave', " ä\u2028b "], "label": ["1", "2"]}


def test_a_line_of_tsv_is_a_row_whatever_its_quotes(tmp_path: Path) -> None:
    lines = [
        "id\ttext\tlabel",
        '1\t"in ""quotes"""\t"a"',  # as CSV writers quote when set to tabs
        '2\t"out of balance\tb',  # as in GLUE, whose files have no quoting
        '3\t"so" he said, "yes"\tc',
        "4\tend\u2028\x85\t",
        '5\t"\t""',
        '6\t""""\t"',
    ]
    for name, ending in (("t.tsv", "\n"), ("t.tab", "\r\n")):
        path = write(tmp_path / name, ("\ufeff" + ending.join(lines) + ending).encode())
        assert columns(path) == {
            "text": ['in "quotes"', '"out of balance', '"so" he said, "yes"', "end\u2028\x85", '"', '"'],
            "label": ["a", "b", "c", "", "", '"'],
        }


def test_a_carriage_return_alone_ends_no_line_of_tsv_or_json(tmp_path: Path) -> None:
    tsv = write(tmp_path / "t.tsv", b"text\tlabel\na\rb\tx\r\n")
    assert columns(tsv) == {"text": ["a\rb"], "label": ["x"]}
    lines = write(tmp_path / "t.jsonl", b'{"text": "a",\r"label": 3}\r\n')
    assert columns(lines) == {"text": ["a"], "label": [3]}


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json", "T.JSONL"])
def test_json_lines_keep_numbers_and_escapes(tmp_path: Path, name: str) -> None:
    lines = ['{"text": "a\\n\\u00e4 \u2028", "label": 3, "more": [1]}', '{"label": true, "text": ""}']
    path = write(tmp_path / name, "\r\n".join(lines).encode())
    assert columns(path) == {"text": ["a\nä \u2028", ""], "label": [3, True]}


def test_parquet_is_read_in_row_groups_without_the_other_columns(tmp_path: Path) -> None:
    size = 12_500  # more than are read at once
    table = pyarrow.table(
        {
            "other": pyarrow.nulls(size),
            "label": pyarrow.array([i % 3 for i in range(size)], pyarrow.int8()),
            "text": pyarrow.array([f"text {i % 700}" for i in range(size)]).dictionary_encode(),
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet", row_group_size=1700)
    read = tables.read(str(tmp_path / "t.parquet"), "train_path", WANTED)
    assert read.columns == {"text": [f"text {i % 700}" for i in range(size)], "label": [i % 3 for i in range(size)]}
    assert read.location(2400, "text") == f"{tmp_path}/t.parquet, row 2401, column text"
    assert read.location(12_400, "text") == f"{tmp_path}/t.parquet, row 12401, column text"


@pytest.mark.parametrize("name", ["t.csv.gz", "t.tsv.gz", "t.jsonl.gz"])
def test_a_compressed_file_is_read_in_its_format(tmp_path: Path, name: str) -> None:
    content = {"csv": "text,label\na,x\n", "tsv": "text\tlabel\na\tx\n", "jsonl": '{"text": "a", "label": "x"}\n'}
    path = write(tmp_path / name, gzip.compress(content[name.split(".")[1]].encode()))
    assert columns(path) == {"text": ["a"], "label": ["x"]}


def test_a_headerless_file_is_recognised_by_its_first_row(tmp_path: Path) -> None:
    for content, rows in ((b"n,t\n1,x\n", [2]), (b'"1","x"\n', [1]), (b"\n\nn,t\n\n1,x\n", [5])):
        path = write(tmp_path / "t.csv", content)
        table = tables.read(path, "train_path", dict.fromkeys("tn"), headerless=["n", "t"])
        assert table.columns == {"t": ["x"], "n": ["1"]}
        assert [table.location(i, "n") for i in range(1)] == [f"{path}, row {rows[0]}, column n"]


def test_long_texts_are_read(tmp_path: Path) -> None:
    text = "a" * 200_000
    assert columns(write(tmp_path / "t.csv", f'text,label\n"{text}",x\n'.encode()))["text"] == [text]


field = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(field, field), min_size=1, max_size=8))
def test_files_written_by_other_programs_round_trip(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    import csv

    expected = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    assert columns(str(tmp_path / "t.csv")) == expected
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    (tmp_path / "t.jsonl").write_bytes("\n".join(lines).encode())
    assert columns(str(tmp_path / "t.jsonl")) == expected
    pyarrow.parquet.write_table(pyarrow.table(expected), tmp_path / "t.parquet")
    assert columns(str(tmp_path / "t.parquet")) == expected


tab_free = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0\t\r\n"), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(tab_free, tab_free), min_size=1, max_size=8))
def test_tab_separated_fields_round_trip_quoted_or_not(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    import csv

    with open(tmp_path / "t.tsv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, "excel-tab")
        writer.writerows([("text", "label"), *rows])
    assert columns(str(tmp_path / "t.tsv")) == {"text": [t for t, _ in rows], "label": [label for _, label in rows]}
