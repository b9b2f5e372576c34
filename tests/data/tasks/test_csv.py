from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError


def load(folder: Path, train: str, test: str, **keys: object) -> Task:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    columns = {"text_column": "body", "label_column": "kind"} | keys
    paths = {"train_path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}
    return load_task(Config(task_name="csv", **paths, **columns))  # type: ignore[arg-type]


def test_columns_may_be_in_any_order_among_others(tmp_path: Path) -> None:
    task = load(tmp_path, "id,body,kind\n1,one,spam\n2,two,ham\n", "kind,body\nham,three\n")
    assert task.label_names == ("ham", "spam")
    assert (task.train.texts, task.train.labels.tolist()) == (["one", "two"], [1, 0])
    assert (task.test.texts, task.test.labels.tolist()) == (["three"], [0])


def test_numeric_labels_are_in_numerical_order(tmp_path: Path) -> None:
    task = load(tmp_path, "body,kind\na,10\nb,9\nc,-1\nd,09\n", "body,kind\nd,10\n")
    assert task.label_names == ("-1", "09", "9", "10"), "equal numbers in alphabetical order"
    assert task.test.labels.tolist() == [3]


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("body,kind\na,x\nb,y\n", "body,kind\nc,z\n", r"test\.csv, row 2, column kind: the label 'z' doesn't occur"),
        ("body,kind\na,x\nb,\n", "body,kind\nc,x\n", r"train\.csv, row 3, column kind: the label is empty"),
        (
            "body,kind\na,0.5\nb,1\n",
            "body,kind\nc,1\n",
            r"train\.csv, row 2, column kind: the label is the number 0\.5",
        ),
        ("body,kind\na,x\nb,x\n", "body,kind\nc,x\n", r"train\.csv: every row has the label 'x'"),
        ("body,kind\n", "body,kind\nc,x\n", r"train\.csv': it has columns, but no rows"),
        ("body,kind\na,x\nb,y\n", "body,kind\n", r"test\.csv': it has columns, but no rows"),
        ("text,kind\na,x\n", "body,kind\nc,x\n", r"text_column='body': .*train\.csv has no column body"),
        ("body,label\na,x\n", "body,kind\nc,x\n", r"label_column='kind': .*train\.csv has no column kind"),
    ],
)
def test_invalid_files_are_refused(tmp_path: Path, train: str, test: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, train, test)


@pytest.mark.parametrize("key", ["text_column", "label_column"])
def test_text_and_label_columns_are_required(tmp_path: Path, key: str) -> None:
    with pytest.raises(UserError, match=f"{key}: task_name=csv needs it"):
        load(tmp_path, "body,kind\na,x\n", "body,kind\na,x\n", **{key: None})


def test_text_pair_column_adds_the_second_text_of_pairs(tmp_path: Path) -> None:
    content = "premise,hypothesis,kind\nit rains,it is wet,yes\nit rains,,no\n"
    task = load(tmp_path, content, content, text_column="premise", text_pair_column="hypothesis")
    assert (task.train.texts, task.train.pairs) == (["it rains", "it rains"], ["it is wet", ""])
    alone = load(tmp_path, content, content, text_column="premise")
    assert alone.train.pairs is None
    assert alone.digest() != task.digest()
    assert task.notes == (
        "empty second training texts (kept): 1 of 2",
        "empty second test texts (kept): 1 of 2",
    )
    more = content + "it rains,it pours,yes\nthe sun shines,it rains,no\n"
    two = load(tmp_path, more, content, text_column="premise", text_pair_column="hypothesis", max_train_examples=2)
    assert two.train.pairs is not None
    assert len(two.train.pairs) == 2


def test_checks_apply_to_the_rows_that_max_train_examples_keeps(tmp_path: Path) -> None:
    train = "body,kind\n" + "a,x\n" * 20 + "b,y\n"
    with pytest.raises(UserError, match=r"max_train_examples=5 of .*train\.csv: every row has the label 'x'"):
        load(tmp_path, train, "body,kind\nb,y\n", max_train_examples=5)
    train += "c,z\n" * 20
    task = load(tmp_path, train, "body,kind\nb,y\n", max_train_examples=6)
    assert task.notes == ("no training example has the label 'y'; test examples that have it: 1",)


def test_a_label_column_of_row_numbers_is_refused(tmp_path: Path) -> None:
    content = "body,kind\n" + "".join(f"a,{number}\n" for number in range(1500))
    with pytest.raises(UserError, match="label_column='kind': 1,500 training rows have 1,500 different values there"):
        load(tmp_path, content, content)


def test_the_same_column_for_two_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label_column='body': text_column names the same column"):
        load(tmp_path, "body,kind\na,x\n", "body,kind\na,x\n", label_column="body")


def test_skipped_lines_and_empty_texts_are_noted(tmp_path: Path) -> None:
    task = load(tmp_path, "body,kind\na,x\n\n,y\n\nb,y\n", "body,kind\n  ,x\n")
    assert task.train.texts == ["a", "", "b"]
    assert task.notes == (
        f"{tmp_path}/train.csv: 2 blank lines skipped",
        "empty training texts (kept): 1 of 3",
        "empty test texts (kept): 1 of 1",
    )


def test_training_and_test_files_may_have_different_formats(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "kind": 1}\n{"body": "two", "kind": 0}\n')
    (tmp_path / "b.csv").write_text("kind,body\n1,three\n")
    config = Config(
        task_name="csv", train_path=str(tmp_path / "a.jsonl"), test_path=str(tmp_path / "b.csv"), text_column="body",
        label_column="kind",
    )  # fmt: skip
    task = load_task(config)
    assert (task.label_names, task.train.labels.tolist(), task.test.labels.tolist()) == (("0", "1"), [1, 0], [1])
