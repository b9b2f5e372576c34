"""Well-formed and malformed files of rows, read through `tables.read` as tasks read them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl.data.readers import paths, tables
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore

WANTED = {"text": "text_column", "label": "label_column"}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def columns(path: str) -> dict[str, list[Any]]:
    return tables.read(path, "train_path", WANTED).columns


def texts_and_labels(path: str) -> tuple[list[str], list[str]]:
    table = tables.read(path, "train_path", WANTED)
    return table.texts("text"), table.labels("label")


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
    ]
    for name, ending in (("t.tsv", "\n"), ("t.tab", "\r\n")):
        path = write(tmp_path / name, ("\ufeff" + ending.join(lines) + ending).encode())
        assert columns(path) == {
            "text": ['in "quotes"', '"out of balance', '"so" he said, "yes"', "end\u2028\x85"],
            "label": ["a", "b", "c", ""],
        }


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.json"])
def test_json_lines_keep_numbers_and_escapes(tmp_path: Path, name: str) -> None:
    lines = ['{"text": "a\\n\\u00e4 \u2028", "label": 3, "more": [1]}', '{"label": true, "text": ""}']
    path = write(tmp_path / name, "\r\n".join(lines).encode())
    assert columns(path) == {"text": ["a\nä \u2028", ""], "label": [3, True]}


def test_parquet_is_read_in_row_groups_without_the_other_columns(tmp_path: Path) -> None:
    size = 2500
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


def test_several_files_and_patterns_are_read_in_order(tmp_path: Path) -> None:
    for name, text in (("part-10", "c"), ("part-02", "b"), ("other", "a")):
        write(tmp_path / f"{name}.jsonl", json.dumps({"text": text, "label": "x"}).encode())
    write(tmp_path / "more.csv", b"label,more,text\ny,,d\n\ny,,e\n")
    paths = f"{tmp_path}/other.jsonl, {tmp_path}/part-*.jsonl,{tmp_path}/more.csv"
    table = tables.read(paths, "train_path", WANTED)
    assert table.columns == {"text": list("abcde"), "label": ["x", "x", "x", "y", "y"]}
    assert table.location(4, "text") == f"{tmp_path}/more.csv, row 4, column text"
    assert table.notes == (f"{tmp_path}/more.csv: 1 blank line skipped",)


def test_a_file_may_have_a_comma_or_a_star_in_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a,b*[1].csv", b"text,label\na,x\n")
    assert paths.expand(path, "train_path") == [path]
    assert columns(path) == {"text": ["a"], "label": ["x"]}


def test_a_file_named_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.csv", b"text,label\na,x\n")
    (tmp_path / "a.csv.d").mkdir()
    monkeypatch.chdir(tmp_path)
    for names in ("a.csv,./a.csv", f"{tmp_path}/a.*,a.csv"):
        with pytest.raises(UserError, match=r"train_path='.*': it names (\./)?a\.csv twice"):
            tables.read(names, "train_path", WANTED)
    assert paths.expand(f"{tmp_path}/a*", "train_path") == [f"{tmp_path}/a.csv"], "folders are ignored"


def test_long_texts_are_read(tmp_path: Path) -> None:
    text = "a" * 200_000
    assert columns(write(tmp_path / "t.csv", f'text,label\n"{text}",x\n'.encode()))["text"] == [text]


def test_the_format_of_a_url_is_determined_by_its_path() -> None:
    with pytest.raises(UserError, match=r"there is no such file, or it can't be reached"):
        columns("http://127.0.0.1:9/x.jsonl?download=true")


def test_patterns_work_on_the_memory_file_system() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe({"/formats/b.csv": b"text,label\nb,x\n", "/formats/a.csv": b"text,label\na,x\n"})
    assert columns("memory://formats/*.csv") == {"text": ["a", "b"], "label": ["x", "x"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "train_path='{path}': the file is empty"),
        ("t.csv", b"\n\n", "train_path='{path}': the file is empty"),
        ("t.csv", b"text,label\n", "train_path='{path}': it has columns (text, label), but no rows"),
        ("t.csv", b"text,label\n1,2\n3\n", "{path}, row 3: expected 2 fields (text, label), found 1"),
        ("t.csv", b"\ntext,label\n\n1,2\n\n3\n", "{path}, row 6: expected 2 fields (text, label), found 1"),
        ("t.csv", b"text,label\n1,2,3\n", "{path}, row 2: expected 2 fields (text, label), found 3"),
        (
            "t.csv",
            b'text,label\n"a\nb",1\n"open,1\n2,3\n4,5\n',
            "{path}, row 3, starting in line 4: unexpected end",
        ),
        ("t.csv", b'text,label\n"x" y,1\n', "{path}, row 2, starting in line 2: ',' expected after '\"'"),
        (
            "t.csv.zip",
            b"PK",
            "train_path='{path}': a zip archive may hold several files; unpack it, or compress each file with gzip",
        ),
        (
            "t.csv",
            b"text,label\n1,2\ncaf\xe9,3\n",
            "{path}, row 3, column text: expected text, found a NUL or bytes that are not UTF-8",
        ),
        (
            "t.csv",
            b"text,label\n1,2\n3,caf\xe9\n",
            "{path}, row 3, column label: expected text, found a NUL or bytes that are not UTF-8",
        ),
        ("t.csv", b"\xff\xfet\x00e\x00", "{path}, row 1: expected text, found UTF-16; save the file as UTF-8"),
        (
            "t.csv",
            b"text,label\nx\x00y,1\n",
            "{path}, row 2, column text: expected text, found a NUL or bytes that are not UTF-8",
        ),
        ("t.csv", b"text,label\nx,1\ny,\n", "{path}, row 3, column label: the label is empty"),
        (
            "t.csv",
            b"text\tlabel\nx\t1\n",
            "{path}, row 1: its fields seem to be separated by tabs, not by commas; name it .tsv",
        ),
        ("t.csv", b"text,text,label\n1,2,3\n", "text_column='text': {path} has 2 columns named text; rename one"),
        ("t.tsv", b'text\tlabel\n"two\nlines"\t1\n', "{path}, row 2: expected 2 fields (text, label), found 1"),
        (
            "t.tsv",
            b"text\tlabel\nx\x00\t1\n",
            "{path}, row 2, column text: expected text, found a NUL or bytes that are not UTF-8",
        ),
        ("t.jsonl", b"", "train_path='{path}': the file is empty"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n{"text": "a"', "{path}, row 2: expected one JSON object per line"),
        ("t.json", b'[{"text": "a", "label": 1}]', "{path}, row 1: expected one JSON object per line, found one list"),
        ("t.json", b'[\n{"text": "a", "label": 1}\n]', "{path}, row 1: expected one JSON object per line"),
        ("t.jsonl", b'{"text": "a"}', "label_column='label': {path} has no column label; choose from text"),
        ("t.jsonl", b'{"text": "a", "label": 1}\n\n{"a": 1}', "{path}, row 3: expected a field 'text', found a"),
        ("t.jsonl", b"[" * 100_000, "{path}, row 1: expected one JSON object per line"),
        ("t.jsonl", b'{"text": null, "label": 1}', "{path}, row 1, column text: expected text, found nothing"),
        ("t.jsonl", b'{"text": 7, "label": 1}', "{path}, row 1, column text: expected text, found int"),
        (
            "t.jsonl",
            b'{"text": "\\ud800", "label": 1}',
            "{path}, row 1, column text: expected text, found a NUL or bytes that are not UTF-8",
        ),
        (
            "t.jsonl",
            b'{"text": "caf\xe9", "label": 1}',
            "{path}, row 1, column text: expected text, found a NUL or bytes that are not UTF-8",
        ),
        ("t.jsonl", b'{"text": "a", "label": null}', "{path}, row 1, column label: the label is empty"),
        ("t.jsonl", b'{"text": "a", "label": NaN}', "{path}, row 1, column label: the label is empty"),
        ("t.jsonl", b'{"text": "a", "label": [1]}', "{path}, row 1, column label: expected a word or a whole number"),
        ("t.parquet", b"no parquet", "train_path='{path}': cannot read it: ArrowInvalid"),
        ("t.csv.gz", b"not packed", "train_path='{path}': cannot read it: BadGzipFile"),
    ],
)
def test_a_malformed_file_is_refused_with_file_row_and_column(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(UserError) as error:
        texts_and_labels(path)
    assert message.format(path=path) in str(error.value)


def test_a_parquet_file_with_missing_values_or_columns_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "t.pq")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None], "label": [1, 2]}), path)
    with pytest.raises(UserError, match=r"t\.pq, row 2, column text: expected text, found nothing"):
        tables.read(path, "train_path", WANTED).texts("text")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "kind": [1]}), path)
    with pytest.raises(UserError, match=r"label_column='label': .*t\.pq has no column label; choose from text, kind"):
        columns(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string()), "label": []}), path)
    with pytest.raises(UserError, match=r"t\.pq': it has columns \(text, label\), but no rows"):
        columns(path)


def test_files_that_cannot_be_opened_are_refused_with_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_path='/no/such\.csv': there is no such file"):
        tables.read("/no/such.csv", "test_path", WANTED)
    with pytest.raises(UserError, match=rf"test_path='{tmp_path}': it is a folder; name the files in it"):
        tables.read(str(tmp_path), "test_path", WANTED)
    with pytest.raises(UserError, match="test_path='nope://x': cannot read it"):
        tables.read("nope://x", "test_path", WANTED)
    with pytest.raises(UserError, match="test_path=',': it names no file"):
        tables.read(",", "test_path", WANTED)
    with pytest.raises(UserError, match=r"test_path='nope://\*': cannot list it"):
        tables.read("nope://*", "test_path", WANTED)
    with pytest.raises(UserError, match=rf"test_path='{tmp_path}/\*\.csv': no file matches this pattern"):
        tables.read(f"{tmp_path}/*.csv", "test_path", WANTED)


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


def test_patterns_work_on_object_stores(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    bucket = object_store.bucket
    object_store.fs.pipe({f"{bucket}/{n}.csv": f"text,label\n{n},x\n".encode() for n in ("part-2", "part-1", "other")})
    assert columns(f"{bucket}/part-*.csv") == {"text": ["part-1", "part-2"], "label": ["x", "x"]}
    assert columns(f"{bucket}/part-2.csv,{bucket}/other.csv")["text"] == ["part-2", "other"]
    object_store.fs.pipe(f"{bucket}/bad.csv", b"a,b\n")
    with pytest.raises(UserError, match=rf"text_column='text': {bucket}/bad\.csv has no column text"):
        columns(f"{bucket}/b*.csv")
    with pytest.raises(UserError, match=rf"train_path='{bucket}/none-\*\.csv': no file matches this pattern"):
        columns(f"{bucket}/none-*.csv")
    with pytest.raises(UserError, match=rf"train_path='{bucket}/none\.csv': there is no such file"):
        columns(f"{bucket}/none.csv")
