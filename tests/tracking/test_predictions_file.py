"""The predictions as a Parquet file."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from scaling_fl.data.examples import Predictions, Split
from scaling_fl.tracking import predictions_file
from tests.conftest import ROOT

LABELS = np.array([0, 1, 1, 0, 1])
PREDICTED = np.array([0, 0, 1, 1, 0])  # rows 2, 4 and 5 are wrong
PROBABILITIES = np.array([0.9, 0.6, 0.7, 0.8, 0.7], np.float32)


def written(folder: Path, pairs: list[str] | None = None) -> list[dict[str, object]]:
    (folder / "test").mkdir()
    np.save(folder / "test" / "labels.npy", LABELS)
    texts = ["one", "two", "three", "four" * 1000, "five"]
    predictions_file.write_texts(folder, Split(texts, LABELS, pairs))
    content = predictions_file.content(folder, ("no", "yes"), Predictions(np.arange(5), PREDICTED, PROBABILITIES))
    rows: list[dict[str, object]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def test_the_most_confident_mistakes_come_first_and_only_they_have_their_texts(tmp_path: Path) -> None:
    rows = written(tmp_path)
    assert [row["row"] for row in rows] == [4, 5, 2, 1, 3]
    assert [(row["label"], row["predicted"]) for row in rows[:3]] == [("no", "yes"), ("yes", "no"), ("yes", "no")]
    assert [row["text"] for row in rows] == [("four" * 500) + "…", "five", "two", None, None]
    assert rows[0]["probability"] == pytest.approx(0.8)
    assert "text_pair" not in rows[0]


def test_few_rows_and_texts_are_kept_of_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictions_file, "_MAX_ROWS", 4)
    monkeypatch.setattr(predictions_file, "_MAX_TEXTS", 1)
    rows = written(tmp_path, pairs=["a", "b", "c", "d", "e"])
    assert [row["row"] for row in rows] == [4, 5, 2, 1]
    assert [row["text_pair"] for row in rows] == ["d", None, None, None]


def test_labels_and_texts_are_those_of_the_rows(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    np.save(tmp_path / "test" / "labels.npy", np.array([1, 0, 0, 1]))
    predictions_file.write_texts(tmp_path, Split(["one", "two", "three", "four"], np.array([1, 0, 0, 1])))
    some = Predictions(np.array([1, 3]), np.array([1, 1]), np.array([0.5, 0.75], np.float32))
    rows = pq.read_table(io.BytesIO(predictions_file.content(tmp_path, ("no", "yes"), some))).to_pylist()
    assert [(row["row"], row["label"], row["text"]) for row in rows] == [(2, "no", "two"), (4, "yes", None)]


def test_reading_starts_no_threads(tmp_path: Path) -> None:
    """Those that still start when a process ends abort it, about once in 30 times on a busy machine."""
    predictions_file.write_texts(tmp_path, Split(["a", "b"], np.array([0, 1])))
    code = (
        "import os, sys, pathlib; from scaling_fl.tracking import predictions_file\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "before = count(); table = predictions_file.table(pathlib.Path(sys.argv[1])); print(len(table), count() - before)"
    )
    path = tmp_path / predictions_file._TEXTS
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "2 0\n"


def test_texts_are_kept_without_pandas_which_takes_long_to_import(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from scaling_fl.data.examples import Split
from scaling_fl.tracking import predictions_file
predictions_file.write_texts(Path(sys.argv[1]), Split(["a", "", "ëß"], np.zeros(3, np.int64), ["x", "漢字", ""]))
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert predictions_file.table(tmp_path / "test_texts.parquet").to_pydict() == {
        "text": ["a", "", "ëß"], "text_pair": ["x", "漢字", ""],
    }  # fmt: skip
