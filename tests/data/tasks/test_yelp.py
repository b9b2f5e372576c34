from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Task
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError

TRAIN = '"5","dr. goldberg offers ""everything"" i look for.\\n\\nhe\'s nice"\n"1","Bad, very bad"\n'


def load(folder: Path, train: str = TRAIN, test: str = '"2","so\\nso"\n') -> Task:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    paths = {"train_path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}
    return load_task(Config(task_name="yelp", **paths))  # type: ignore[arg-type]


def test_line_breaks_are_unescaped_and_stars_are_labels(tmp_path: Path) -> None:
    task = load(tmp_path)
    assert task.label_names == ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
    assert task.train.labels.tolist() == [4, 0]
    assert task.train.texts == ['dr. goldberg offers "everything" i look for.\n\nhe\'s nice', "Bad, very bad"]
    assert (task.test.texts, task.test.labels.tolist()) == (["so\nso"], [1])


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (TRAIN + '"0","x"\n', r"train\.csv, row 3, column stars: expected 1 or 2 or 3 or 4 or 5, found '0'"),
        (TRAIN + '"5"\n', r"train\.csv, row 3: expected 2 fields \(stars, text\), found 1"),
        (TRAIN + '"5","open\n', r"train\.csv, row 3, starting in line 3: unexpected end of data"),
    ],
)
def test_malformed_rows_are_refused_by_row_number(tmp_path: Path, train: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(tmp_path, train)
