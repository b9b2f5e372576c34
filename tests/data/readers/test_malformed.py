"""Malformed files of rows, read through `tables.read`: the message names file, row and column."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from scaling_fl.data.readers import tables
from scaling_fl.errors import UserError
from tests.data.readers.files import WANTED, columns, texts_and_labels, write


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "train_path='{path}': the file is empty"),
        ("t.csv", b"\n\n", "train_path='{path}': the file is empty"),
        ("t.csv", b"text,label\n", "train_path='{path}': it has columns, but no rows; name another"),
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
        (
            "t.json",
            b'[{"text": "a", "label": 1}]',
            "{path}, row 1: expected one JSON object per line, found a JSON array",
        ),
        (
            "t.jsonl",
            b'{"text": "a", "label": 1}\n[1]',
            "row 2: expected one JSON object per line, found one list; correct",
        ),
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
        ("t.parquet", b"", "train_path='{path}': the file is empty"),
        ("t.parquet", b"PAR1" + bytes(90), "train_path='{path}': cannot read it: ArrowInvalid"),
        ("t.parquet", bytes(90), "train_path='{path}': cannot read it: ArrowInvalid"),
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
    with pytest.raises(UserError, match=r"t\.pq': it has columns, but no rows"):
        columns(path)
