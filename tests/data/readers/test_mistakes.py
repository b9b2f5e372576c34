"""Mistakes in files that users make: one line each, with the thing, what was found and the remedy."""

import bz2
import codecs
import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.readers import tables
from scaling_fl.data.shards import make_shards
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError
from scaling_fl.models import loading

CSV = {"task_name": "csv", "text_column": "body", "label_column": "topic"}
AG = "Class Index,Title,Description\n"
OTHERS = "for a file with other columns, use task_name=csv text_column=… label_column=…"
SOUND = b"topic,body\nx,a\ny,b\n"
RECORDS = [{"topic": "x", "body": "a, b"}, {"topic": "y", "body": "c"}]
LINES = "\n".join(map(json.dumps, RECORDS))
COMPACT = json.dumps(RECORDS[0], separators=(",", ":"))  # in which a CSV reader finds unbalanced quotes
ARRAY, INDENTED = json.dumps(RECORDS), json.dumps(RECORDS, indent=1)
FOUND_LINES = "found JSON lines; name it .jsonl"
FOUND_ARRAY = "found a JSON array; write one object per line, for example with jq -c '.[]'"


def load(folder: Path, content: bytes | str, name: str = "train.csv", **keys: Any) -> Task:
    """A task whose training file holds `content`, and whose test file is sound."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "sound.csv").write_bytes(SOUND)
    with contextlib.chdir(folder):
        return load_task(Config.from_mapping(CSV | {"train_path": name, "test_path": "sound.csv"} | keys))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "topic;body\na;b\n", "train.csv, row 1: its fields seem to be separated by semicolons, not by commas; save it with commas"),
        ("train.csv", "id\ttopic\tbody\n1\ta\tb\n", "separated by tabs, not by commas; name it .tsv"),
        ("train.csv", "topic|body\na|b\n", "separated by vertical bars, not by commas; save it with commas"),
        ("train.csv", '"topic";"body"\n"a";"b"\n', "separated by semicolons"),
        ("train.tsv", "topic,body\na,b\n", "train.tsv, row 1: its fields seem to be separated by commas, not by tabs; name it .csv"),
        ("train.csv", "topic,body\n", "train_path='train.csv': it has columns, but no rows; name another"),
        ("train.csv", "topic,body\na,b\ntopic,body\nc,d\n", "train.csv, row 3: it repeats the header; remove the row"),
        ("train.tsv", "topic\tbody\na\tb\n\ntopic\tbody\n", "train.tsv, row 4: it repeats the header; remove the row"),
        ("train.csv", "topic,body\na,b\n\ufefftopic,body\nc,d\n", "train.csv, row 3: it repeats the header; remove the row"),
        ("train.csv", 'topic,body\na,b\n\ufeff"topic","body"\nc,d\n', "train.csv, row 3: it repeats the header; remove the row"),
        ("train.csv", "topic,body\na,b\nTopic, BODY\nc,d\n", "train.csv, row 3: it repeats the header; remove the row"),
        ("train.tsv", "topic\tbody\na\tb\n\ufeffTOPIC\t body\n", "train.tsv, row 3: it repeats the header; remove the row"),
        ("train.xlsx", b"PK\x03\x04\x14\0\6\0", "train.xlsx, row 1: expected text, found an Excel workbook or a zip archive; save the sheet as CSV"),
        ("train.csv", b"PK\x03\x04\x14\0\6\0", "train.csv, row 1: expected text, found an Excel workbook or a zip archive"),
        ("train.xls", b"\xd0\xcf\x11\xe0\xa1\xb1", "found an Excel workbook; save the sheet as CSV in UTF-8"),
        ("train.csv", b"PAR1\x15\x04", "found Parquet; name it .parquet"),
        ("train.csv", gzip.compress(SOUND, mtime=0), "found gzip; add .gz to its name"),
        ("train.csv", b"\xfd7zXZ\0", "found xz; add .xz to its name"),
        ("train.csv", bz2.compress(SOUND), "found bzip2; add .bz2 to its name"),
        ("train.csv", codecs.BOM_UTF16_LE + "topic".encode("utf-16-le"), "found UTF-16; save the file as UTF-8"),
        ("train.csv", codecs.BOM_UTF16_BE + "topic".encode("utf-16-be"), "found UTF-16; save the file as UTF-8"),
        ("train.csv", "%PDF-1.7\n", "found a PDF document; name a file of rows"),
        ("train.csv", "<!DOCTYPE html>\n", "found a web page; download the file itself"),
        ("train.jsonl", "<html lang='en'>\n", "found a web page; download the file itself"),
        ("train.csv", "version https://git-lfs.github.com/spec/v1\n", "found a Git LFS pointer; fetch the file with git lfs pull"),
        ("train.csv", LINES, f"train.csv, row 1: expected CSV, {FOUND_LINES}"),
        ("train.csv", f"\n\ufeff{COMPACT}", f"train.csv, row 2: expected CSV, {FOUND_LINES}"),
        ("train.tsv", LINES, f"train.tsv, row 1: expected TSV, {FOUND_LINES}"),
        ("train.parquet", LINES, f"train.parquet, row 1: expected Parquet, {FOUND_LINES}"),
        ("train.csv", ARRAY, f"train.csv, row 1: expected CSV, {FOUND_ARRAY}, and name it .jsonl"),
        ("train.parquet", INDENTED, f"train.parquet, row 1: expected Parquet, {FOUND_ARRAY}, and name it .jsonl"),
        ("train.json", ARRAY, f"train.json, row 1: expected one JSON object per line, {FOUND_ARRAY}"),
        ("train.jsonl", INDENTED, f"train.jsonl, row 1: expected one JSON object per line, {FOUND_ARRAY}"),
        ("train.jsonl", INDENTED[2:], "found a JSON object over several lines; write one object per line, for example with jq -c '.'"),
        ("train.parquet", INDENTED[2:], "found a JSON object over several lines; write one object per line, for example with jq -c '.', and name it .jsonl"),
        ("train.parquet", b"PAR1\x15\4\x15\x20", "cannot read it: ArrowInvalid"),
        ("train.jsonl", SOUND, "train.jsonl, row 1: expected one JSON object per line, found 'topic,body'; if it is CSV, name it .csv"),
        ("train.json", "id\ttopic\n", "found 'id topic'; if it is TSV, name it .tsv"),
        ("train.parquet", SOUND, "train.parquet, row 1: expected Parquet, found text; name it .csv, .tsv or .jsonl, whichever it is"),
        ("train.parquet", b"PK\x03\x04\x14\0\6\0", "expected Parquet, found an Excel workbook or a zip archive; save the sheet as CSV in UTF-8"),
        ("train.parquet", gzip.compress(SOUND, mtime=0), "expected Parquet, found gzip; unpack it"),
        ("train.csv", " body , Topic \na,b\n", "text_column='body': train.csv has no column body (did you mean ' body '?); choose from ' body ', ' Topic '"),
        ("train.csv", "topic,Body,\na,b,c\n", "has no column body (did you mean 'Body'?); choose from topic, Body, ''"),
        ("train.csv", 'topic,"bo\ndy"\na,b\n', r"has no column body; choose from topic, 'bo\ndy'"),
    ],
)  # fmt: skip
def test_files_of_another_format_name_it(tmp_path: Path, name: str, content: bytes | str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        load(tmp_path, content, name)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label,text\n1,a\n", f"train.csv, row 1: expected 3 fields (Class Index, Title, Description), found 2 (label, text); {OTHERS}"),
        ("label,title,text\n1,a,b\n", f"train.csv, row 1, column Class Index: expected the header Class Index,Title,Description or a label (1 or 2 or 3 or 4), found label, text; {OTHERS}"),
        ("1;a;b\n", "train.csv, row 1: its fields seem to be separated by semicolons, not by commas"),
        ('1,"a; b; c; d",e,f\n', "train.csv, row 1: expected 3 fields (Class Index, Title, Description), found 4 (1, a; b; c; d, e, f)"),
        (f"{AG}0,a,b\n3,c,d\n1,e,f\n2,g,h\n", "row 2, column Class Index: expected 1 or 2 or 3 or 4, found '0'; the labels seem to count from 0: add 1 to each, or use task_name=csv, which takes any labels"),
        (f"{AG}1,a,b\n0,c,d\n4,e,f\n", "found '0'; correct it, or use task_name=csv, which takes any labels"),
        (f"{AG}World,a,b\nSports,c,d\n", "row 2, column Class Index: expected 1 or 2 or 3 or 4, found 'World'; correct it, or use task_name=csv, which takes any labels"),
        ("World,a,b\nSports,c,d\nWorld,e,f\n", "row 1, column Class Index: expected 1 or 2 or 3 or 4, found 'World'; correct it, or"),
        (f"1,a,b\n{AG}2,c,d\n", "train.csv, row 2: it repeats the header; remove the row"),
        (AG, "train_path='train.csv': it has columns, but no rows; name another"),
    ],
)  # fmt: skip
def test_files_that_are_not_ag_news_say_what_they_have(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        load(tmp_path, content, task_name="agnews", text_column=None, label_column=None)
    assert message in str(refusal.value)


@pytest.mark.parametrize("name", ["a[1].csv", "a, b.csv", "x,y,z.csv", "a::b.csv", "what?.csv", "50% *.csv", "[ab]/c.csv", "k::l/m,n.csv"])  # fmt: skip
def test_paths_that_exist_are_found_whatever_their_characters(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "more.csv").write_bytes(SOUND)
    assert load(tmp_path, SOUND, name).train.texts == ["a", "b"]
    assert len(load(tmp_path, SOUND, name, train_path=f"{name}, more.csv").train) == 4
    assert len(load(tmp_path, SOUND, name, train_path=f"more.csv,{tmp_path / name}").train) == 4


@given(st.lists(st.text("ab,[]*?: ", min_size=1, max_size=6), min_size=1, max_size=2))
def test_any_folder_and_file_is_found(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("f")
    path = folder.joinpath(*(f"{part}x" for part in parts[:-1]), f"{parts[-1]}.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(SOUND)
    wanted = {"body": "text_column"}
    assert tables.read(str(path), "train_path", wanted).columns["body"] == ["a", "b"]
    pattern = str(path.parent / "*.csv")
    assert tables.read(pattern, "train_path", wanted).columns["body"] == ["a", "b"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["01", "1", "2"], "'01' and '1' look alike"),
        (["True", "TRUE", "False"], "'TRUE' and 'True' look alike"),
        (["caf\u00e9", "cafe\u0301", "bar"], "'cafe\\u0301' and 'caf\\xe9' look alike"),
        (["a  b", "a b", "c"], "'a  b' and 'a b' look alike"),
        (["ab", "a\u200bb", "c"], "'ab' and 'a\\u200bb' look alike"),
        (["\u2764", "\u2764\ufe0f", "c"], "'\\u2764' and '\\u2764\\ufe0f' look alike"),
        (["sci-tech", "sci\u2013tech"], "'sci-tech' and 'sci\\u2013tech' look alike"),
        (["it's", "it\u2019s"], "\"it's\" and 'it\\u2019s' look alike"),
        (["-1", "\u22121", "1"], "'-1' and '\\u22121' look alike"),
        (["1e1", "10", "a", "A", "b", "B", "c", "C", "d", "D"], "'A' and 'a'; 'B' and 'b'; 'C' and 'c' (and 1 more such groups) look alike"),
        (["1", "2", "a", "\u00df", "s"], None),
    ],
)  # fmt: skip
def test_labels_and_sites_that_look_alike_are_noted(tmp_path: Path, labels: list[str], said: str | None) -> None:
    content = "topic,body\n" + "".join(f"{label},text\n" for label in labels)
    task = load(tmp_path, content, test_path="train.csv")
    notes: list[str] = []
    by_site = load(
        tmp_path, content, test_path="train.csv", partition="column", partition_column="topic", site_ids=[-1]
    )
    make_shards(Config(partition="column", partition_column="topic", site_ids=(-1,)), by_site.train, notes)
    for key, found in (("label_column", task.notes), ("partition_column", notes)):
        alike = [note for note in found if "look alike" in note]
        assert len(alike) == (said is not None)
        if said is not None and labels[0] != "1e1":
            assert alike[0].startswith(f"{key}='topic': {said}, but count as different; if they mean the same, write")


def test_a_test_label_written_in_another_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("topic,body\nX,a\n")
    with pytest.raises(UserError, match=r"the label 'X' doesn't occur in train\.csv \(but 'x' does\)"):
        load(tmp_path, SOUND, test_path="t.csv")
    (tmp_path / "t.csv").write_text("topic,body\nx\u200b,a\n")
    with pytest.raises(UserError, match=r"the label 'x\\u200b' doesn't occur in train\.csv \(but 'x' does\)"):
        load(tmp_path, SOUND, test_path="t.csv")


def test_a_file_without_rows_may_be_removed_from_a_list_of_several(tmp_path: Path) -> None:
    for content, what in (("", "the file is empty"), ("topic,body\n", "it has columns, but no rows")):
        with pytest.raises(UserError) as refusal:
            load(tmp_path, content, train_path="sound.csv,train.csv")
        assert str(refusal.value) == f"train_path='train.csv': {what}; name another, or remove it from the list"
        with pytest.raises(UserError) as refusal:
            load(tmp_path, content)
        assert str(refusal.value) == f"train_path='train.csv': {what}; name another"


def test_columns_in_brackets_are_not_json(tmp_path: Path) -> None:
    for names in ("[topic],[body]", "{topic},{body}", "[1],[2]"):
        topic, body = names.split(",")
        task = load(tmp_path, f"{names}\nx,a\ny,b\n", test_path="train.csv", text_column=body, label_column=topic)
        assert task.train.texts == ["a", "b"]


def test_max_train_examples_is_blamed_only_if_it_is_to_blame(tmp_path: Path) -> None:
    one = "topic,body\n" + "x,a\n" * 9
    with pytest.raises(UserError, match=r"^train\.csv: every row has the label 'x'.*use data with two labels or more"):
        load(tmp_path, one, test_path="train.csv", max_train_examples=3)
    with pytest.raises(UserError, match=r"^max_train_examples=1 of train\.csv: every row .*; raise it"):
        load(tmp_path, one + "y,b\n", test_path="train.csv", max_train_examples=1)


@pytest.mark.parametrize(
    ("keys", "suggestion"),
    [
        ({"train_path": "trian.csv"}, r"train_path='trian\.csv': there is no such file \(did you mean train\.csv\?\)"),
        ({"test_path": "./soud.csv"}, r"there is no such file \(did you mean \./sound\.csv\?\)"),
    ],
)
def test_the_most_similar_file_is_suggested(tmp_path: Path, keys: dict[str, Any], suggestion: str) -> None:
    with pytest.raises(UserError, match=suggestion):
        load(tmp_path, SOUND, **keys)


@pytest.mark.parametrize(
    ("model", "suggestion"),
    [
        ("distilbrt", r"model=distilbrt \(did you mean distilbert\?\): "),
        ("models/all-minilm", r"model=models/all-minilm \(did you mean models/all-MiniLM\?\): "),
        ("./models/all-MiniLM2", r"there is no such folder \(did you mean \./models/all-MiniLM\?\); give"),
    ],
)
def test_the_most_similar_model_is_suggested(
    tmp_path: Path, model: str, suggestion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "all-MiniLM").mkdir(parents=True)
    with pytest.raises(UserError, match=suggestion):
        loading.load_tokenizer(model, [], 16)
