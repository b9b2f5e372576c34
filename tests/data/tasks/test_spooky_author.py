from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError

ROWS = 'id,text,author\nid1,"This process, however, afforded me no ""means"".",EAP\nid2,Ångström never forgot.,HPL\n'


def load(folder: Path, train: str = ROWS) -> Task:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text("id,text,author\nid3,How lovely is spring,MWS\n")
    paths = {"train_path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}
    return load_task(Config(task_name="spooky_author", **paths))  # type: ignore[arg-type]


def test_labels_are_the_authors_full_names(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert task.label_names == ("Edgar Allan Poe", "H. P. Lovecraft", "Mary Wollstonecraft Shelley")
    assert task.train.texts == ['This process, however, afforded me no "means".', "Ångström never forgot."]
    assert (task.train.labels.tolist(), task.test.labels.tolist()) == ([0, 1], [2])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (ROWS + "id4,x,JRR\n", r"train\.csv, row 4, column author: expected EAP or HPL or MWS, found 'JRR'"),
        ("id,text\nid1,Kaggle's own test file\n", r"train\.csv has no column author; it has id, text; rename"),
    ],
)
def test_files_that_do_not_fit_the_task_are_refused(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, train)
