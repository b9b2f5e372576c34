from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError

KAGGLE = (
    "Class Index,Title,Description\n"
    '3,Wall St. Bears,"Short-sellers, Wall Street\'s dwindling\\band"\n'
    '4,"He said ""no""",Second  #36;5 text\n1,W,World text\n2,S,Sports text\n'
)
CREPE = '"2","Fears for T N pension","Unions say they are \'disappointed\'."\n"1","The ""Race""","Toronto"\n'


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "train.csv").write_text(KAGGLE)
    (tmp_path / "test.csv").write_text(CREPE)
    return str(tmp_path / "train.csv"), str(tmp_path / "test.csv")


def load(files: tuple[str, str], **keys: object) -> Task:
    return load_task(Config(task_name="agnews", train_path=files[0], test_path=files[1], **keys))  # type: ignore[arg-type]


def test_both_file_layouts_are_read(files: tuple[str, str]) -> None:
    task = load(files)
    assert task.label_names == ("World", "Sports", "Business", "Sci/Tech")
    assert task.train.labels.tolist() == [2, 3, 0, 1]
    assert task.train.texts[:2] == ["Short-sellers, Wall Street's dwindling\\band", "Second  #36;5 text"]
    assert task.test.labels.tolist() == [1, 0]
    assert task.test.texts == ["Unions say they are 'disappointed'.", "Toronto"]


@pytest.mark.parametrize(
    ("text_column", "text"),
    [("Title", 'He said "no"'), ("Title+Description", 'He said "no" Second  #36;5 text')],
)
def test_text_column_selects_title_description_or_both(files: tuple[str, str], text_column: str, text: str) -> None:
    assert load(files, text_column=text_column).train.texts[1] == text


def test_files_and_keys_that_do_not_fit_ag_news_are_refused(files: tuple[str, str]) -> None:
    with pytest.raises(
        UserError,
        match=r"text_column='title': expected one of Title, Description, Title\+Description with task_name=agnews",
    ):
        load(files, text_column="title")
    with pytest.raises(UserError, match="train_path: task_name=agnews needs it"):
        load_task(Config(task_name="agnews"))
    Path(files[0]).write_text(KAGGLE.replace("1,W", "5,W"))
    with pytest.raises(UserError, match=r"train\.csv, row 4, column Class Index: expected 1 or 2 or 3 or 4, found '5'"):
        load(files)
    with pytest.raises(UserError, match=r"label_column='kind': task_name=agnews doesn't use it; it takes train_path"):
        load(files, label_column="kind")
    Path(files[0]).write_text("label,text\n1,a\n")
    with pytest.raises(UserError, match=r"train\.csv, row 1: expected 3 fields \(Class Index, Title, Description\)"):
        load(files)


def test_a_label_without_training_examples_is_noted(files: tuple[str, str]) -> None:
    Path(files[0]).write_text(KAGGLE.replace("1,W", "3,W"))
    note = "no training example has the label 'World'; test examples that have it: 1"
    assert note in load(files).notes


def test_a_reduced_number_of_rows_keeps_the_label_proportions(files: tuple[str, str]) -> None:
    task = load(files, max_train_examples=2, max_test_examples=99)
    assert len(task.train) == 2
    assert len(task.test) == 2
    assert len(set(task.train.labels.tolist())) == 2


def test_the_digest_depends_on_content_only(files: tuple[str, str], tmp_path: Path) -> None:
    digest = load(files).digest()
    moved = tmp_path / "moved.csv"
    Path(files[0]).rename(moved)
    assert load((str(moved), files[1])).digest() == digest, "the same content elsewhere"
    moved.write_text(KAGGLE.replace("World text", "World Text"))
    assert load((str(moved), files[1])).digest() != digest
    moved.write_text(KAGGLE.replace("1,W", "2,W"))
    assert load((str(moved), files[1])).digest() != digest


def test_only_labels_that_test_examples_have_are_missed_in_training(files: tuple[str, str]) -> None:
    """No training example is Sports or Sci/Tech; the test file has one Sports and one World."""
    Path(files[0]).write_text("3,a,b\n1,c,d\n")
    assert load(files).notes == ("no training example has the label 'Sports'; test examples that have it: 1",)
