"""Documents of language models: where they come from, and what divides them among sites."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task, load_test, reads_over_network
from scaling_fl.errors import UserError

ROWS = [("a river", "x", "Oslo"), ("  stone\t", "y", "Lund"), ("", "x", "Lund")]


def files(folder: Path) -> dict[str, str]:
    for name in ("train", "test"):
        rows = [{"text": f"{text}{name}" if text else "", "topic": topic, "town": town} for text, topic, town in ROWS]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"train_path": str(folder / "train.jsonl"), "test_path": str(folder / "test.jsonl")}


def config(**keys: Any) -> Config:
    return Config.from_mapping({"task_name": "lm", "site_ids": [-1]} | keys)


def test_documents_are_the_column_text(tmp_path: Path) -> None:
    task = load_task(config(**files(tmp_path)))
    assert task.predicts_tokens
    assert (task.classes, task.label_names) == ((), ())
    assert task.train.texts == ["a rivertrain", "  stone\ttrain", ""]
    assert task.test.texts[0] == "a rivertest"
    assert task.train.labels.tolist() == [0, 0, 0]
    assert "empty training texts (kept): 1 of 3" in task.notes


def test_labels_and_sites_divide_documents_and_are_not_predicted(tmp_path: Path) -> None:
    keys = files(tmp_path) | {"label_column": "topic"}
    task = load_task(config(partition="dirichlet", alpha=1, **keys))
    assert (task.classes, task.label_names, task.train.labels.tolist()) == ((), ("x", "y"), [0, 1, 0])
    task = load_task(config(partition="column", partition_column="town", **files(tmp_path)))
    assert task.train.sites == ["Oslo", "Lund", "Lund"]


def test_each_line_of_a_text_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\n  two \r\n")
    (tmp_path / "b.txt").write_text("three")
    task = load_task(config(train_path=f"{tmp_path}/*.txt", test_path=str(tmp_path / "b.txt")))
    assert task.train.texts == ["one", "  two ", "three"]
    assert task.test.texts == ["three"]


def test_documents_come_from_parquet_and_from_data_sets_of_the_hub(tmp_path: Path) -> None:
    keys = files(tmp_path)
    rows = {
        name: [json.loads(line) for line in Path(keys[f"{name}_path"]).read_text().splitlines()]
        for name in ("train", "test")
    }
    for name, of_file in rows.items():
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(of_file), tmp_path / f"{name}.parquet")
    saved = datasets.DatasetDict({name: datasets.Dataset.from_list(of_file) for name, of_file in rows.items()})
    saved.save_to_disk(tmp_path / "saved")
    expected = load_task(config(**keys))
    parquet = {name: str(Path(path).with_suffix(".parquet")) for name, path in keys.items()}
    for more in (parquet, {"dataset": str(tmp_path / "saved")}):
        task = load_task(config(**more))
        assert (task.train.texts, task.test.texts) == (expected.train.texts, expected.test.texts)
    assert reads_over_network(config(dataset="owner/name"))
    assert not reads_over_network(config(**keys))


def test_the_test_documents_load_alone(tmp_path: Path) -> None:
    keys = files(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    assert load_test(config(**keys)).test.texts[0] == "a rivertest"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"partition": "dirichlet", "alpha": 1}, "partition=dirichlet: it divides rows by label.*set label_column, or"),
        ({"iid_split": False}, "partition=by_label: it divides rows by label"),
        ({"partition": "labels_per_site", "labels_per_site": 1}, "partition=labels_per_site: it divides rows by label"),
        ({"text_column": "body"}, "has no column body; choose from text, topic, town"),
        ({"train_path": None}, "train_path: task_name=lm needs it; set train_path=FILE"),
        ({"test_path": None}, "test_path: task_name=lm needs it; .*or test_fraction=0.2"),
        ({"dataset": "x"}, "train_path='.*': task_name=lm doesn't use it; it takes dataset, "),
        ({"text_pair_column": "topic"}, "text_pair_column='topic': task_name=lm doesn't use it"),
        ({"keep_best": "validation.macro_f1"}, "keep_best=validation.macro_f1: a language model has no classes"),
        (
            {"attack": "label_flip", "attackers": 1, "num_sites": 3},
            "attack=label_flip: a language model has no classes",
        ),
        ({"train_path": "no.txt"}, "train_path='no.txt': there is no such file"),
        ({"train_path": "EMPTY"}, "EMPTY.*: the file has no text; name another"),
        ({"train_path": "TEXT", "label_column": "topic"}, "text files have no columns, but label_column name some"),
        ({"train_path": "TEXT", "text_column": "body"}, "text files have no columns, but text_column name some"),
        ({"train_path": "NOISE"}, "NOISE.txt, row 2, column text: .*UTF-8"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    (tmp_path / "TEXT.txt").write_text("one\ntwo\n")
    (tmp_path / "EMPTY.txt").write_text("\n \n")
    (tmp_path / "NOISE.txt").write_bytes(b"one\n\xff\n")
    path = more.get("train_path")
    if isinstance(path, str) and path.isupper():
        more = more | {"train_path": str(tmp_path / f"{path}.txt")}
    with pytest.raises(UserError, match=message):
        load_task(config(**files(tmp_path) | more))
