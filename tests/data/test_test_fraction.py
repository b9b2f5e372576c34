"""`test_fraction`: a part of the training file as the test set."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from scaling_fl.checkpoint import resume
from scaling_fl.config import compatibility
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task, load_test
from scaling_fl.errors import UserError

LABELS = "abbcccbcca" * 4  # 8 a, 12 b, 20 c
ROWS = [(f"text {number}", label) for number, label in enumerate(LABELS)]


def config(folder: Path, **keys: Any) -> Config:
    path = folder / "all.csv"
    path.write_text("body,topic\n" + "".join(f"{text},{label}\n" for text, label in ROWS))
    columns = {"text_column": "body", "label_column": "topic"}
    return Config.from_mapping({"task_name": "csv", "train_path": str(path), "test_fraction": 0.25, **columns} | keys)


def test_training_and_test_rows_are_disjoint_stratified_and_seeded(tmp_path: Path) -> None:
    task = load_task(config(tmp_path))
    parts = [
        list(zip(split.texts, (task.label_names[label] for label in split.labels), strict=True))
        for split in (task.train, task.test)
    ]
    assert sorted(parts[0] + parts[1]) == sorted(ROWS), "each row once"
    # a quarter of 8, 12 and 20 rows
    assert {label: [row[1] for row in parts[1]].count(label) for label in "abc"} == {"a": 2, "b": 3, "c": 5}
    assert "the test set is 10 of 40 rows" in task.notes
    assert load_task(config(tmp_path)).digest() == task.digest(), "the same on all nodes"
    others = [load_task(config(tmp_path, **keys)) for keys in ({"data_seed": 1}, {"test_fraction": 0.3})]
    assert len({task.digest(), *(other.digest() for other in others)}) == 3
    reduced = load_task(config(tmp_path, max_train_examples=9, max_test_examples=4))
    assert (len(reduced.train), len(reduced.test)) == (9, 4)
    assert set(reduced.test.texts) < set(task.test.texts)
    assert load_test(config(tmp_path)).test.digest == task.test.digest


@pytest.mark.parametrize("task_name", ["agnews", "yelp", "spooky_author"])
def test_tasks_with_two_files_take_one(tmp_path: Path, task_name: str) -> None:
    rows = {"agnews": '"{}","title","text"\n', "yelp": '"{}","text"\n', "spooky_author": "1,text,{}\n"}[task_name]
    labels = ("EAP", "HPL") if task_name == "spooky_author" else ("1", "3")
    head = "id,text,author\n" if task_name == "spooky_author" else ""
    (tmp_path / "all.csv").write_text(head + "".join(rows.format(label) for label in labels * 10))
    keys = {"task_name": task_name, "train_path": str(tmp_path / "all.csv")}
    task = load_task(Config.from_mapping(keys | {"test_fraction": 0.2}))
    assert (len(task.train), len(task.test), len(set(task.test.labels.tolist()))) == (16, 4, 2)
    with pytest.raises(
        UserError, match=r"needs it; set test_path=FILE, or test_fraction=0\.2 to test on a part of train_path"
    ):
        load_task(Config.from_mapping(keys))


def test_a_data_set_of_the_hub_needs_no_test_split(tmp_path: Path) -> None:
    columns = {"body": [text for text, _ in ROWS], "topic": [label for _, label in ROWS]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(tmp_path / "saved")
    keys = {"task_name": "hub", "train_path": None, "dataset": str(tmp_path / "saved")}
    task = load_task(config(tmp_path, **keys))
    assert task.digest() == load_task(config(tmp_path)).digest(), "the same rows as from a file"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"test_path": "t.csv"}, "test_fraction=0.25 test_path=t.csv: both set the test set; leave one of them out"),
        ({"test_fraction": 1.0}, "test_fraction=1.0: expected a number from 0 to less than 1"),
        ({"test_fraction": 0.01}, "test_fraction=0.01: holds back none of 40 training examples; raise it"),
        (
            {"task_name": "imdb", "text_column": None, "label_column": None},
            "test_fraction=0.25: task_name=imdb doesn't",
        ),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task(config(tmp_path, **keys))


def test_a_resume_with_another_fraction_is_refused(tmp_path: Path) -> None:
    before = config(tmp_path, job_name="j").to_mapping()
    now = config(tmp_path, job_name="j", test_fraction=0.5)
    with pytest.raises(UserError, match=r"test_fraction was 0\.25, is now 0\.5"):
        compatibility.check_config(now, before)
    del before["test_fraction"]  # a job of an earlier version, which had the default
    with pytest.raises(UserError, match=r"test_fraction was 0\.0, is now 0\.5"):
        resume._check_same_job(
            now, {"job_name": "j", "config": before, "data_digest": "0" * 64}, load_task(now).digest(), 1
        )
