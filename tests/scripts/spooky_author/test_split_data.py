import csv
import subprocess
import sys
from collections import Counter
from pathlib import Path

import fsspec
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data.readers import tables
from scaling_fl.data.task_loader import load_task
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "spooky_author" / "split_data.py"


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """40 rows of EAP, 28 of HPL, 13 of MWS, mixed; texts with commas, quotes and line breaks."""
    authors = ["EAP"] * 40 + ["HPL"] * 28 + ["MWS"] * 13
    with open(tmp_path / "full.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "author"])
        for number in range(81):
            author = authors[number * 7 % 81]
            writer.writerow([f"id{number}", f'Text, "{number}"\nof {author}', author])
    return tmp_path / "full.csv"


def run(full: Path, *more: str, train: str = "train.csv", test: str = "test.csv") -> "subprocess.CompletedProcess[str]":
    argv = ["--full-path", str(full), "--train-path", train, "--test-path", test, *more]
    return subprocess.run(
        [sys.executable, str(SCRIPT), *argv], cwd=full.parent, capture_output=True, text=True, check=False
    )


def test_every_row_is_in_one_part_and_authors_keep_their_proportions(full: Path) -> None:
    done = run(full)
    assert done.returncode == 0, done.stderr
    # 81 × 0.75 = 60.75, rounded to 61; of these 30.1, 21.1 and 9.8: largest remainders make 30, 21 and 10.
    assert done.stdout == ("train.csv: 61 rows (EAP 30, HPL 21, MWS 10)\ntest.csv: 20 rows (EAP 10, HPL 7, MWS 3)\n")
    folder = full.parent
    paths = {"train_path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}
    task = load_task(Config(task_name="spooky_author", **paths))  # type: ignore[arg-type]
    everything = tables.read(str(full), "x", {"text": None}).texts("text")
    assert Counter(task.train.texts + task.test.texts) == Counter(everything)


def test_the_seed_selects_the_rows_and_files_are_replaced_only_with_force(full: Path) -> None:
    assert run(full).returncode == 0
    first = (full.parent / "train.csv").read_text()
    again = run(full, "--seed", "2")
    assert again.returncode == 1
    assert again.stderr == "train.csv: already exists; choose another path, or add --force to replace it\n"
    assert run(full, "--force").returncode == 0
    assert (full.parent / "train.csv").read_text() == first
    assert run(full, "--force", "--seed", "2").returncode == 0
    assert (full.parent / "train.csv").read_text() != first


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train-size", "1.5"], "--train-size=1.5: expected a number between 0 and 1"),
        (["--train-size", "0.001"], "--train-size=0.001: it leaves no row for train.csv; move it closer to 0.5"),
        (["--test-path", "train.csv"], "must be three different files"),
        (["--test-path", "./train.csv"], "must be three different files"),
        (["--train-path", "../{folder}/full.csv", "--force"], "must be three different files"),
        (["--test-path", "test.csv.gz"], "test.csv.gz: the output is CSV; choose a name ending in .csv"),
        (["--test-path", "full.csv/x.csv"], "full.csv/x.csv: cannot write to it (FileExistsError"),
        (["--test-path", "nope://x.csv"], "nope://x.csv: cannot write to it (ValueError"),
        (["--seed", "-1"], "--seed=-1: expected a whole number from 0 to 4294967295"),
        (["--full-path", "no.csv"], "--full-path='no.csv': there is no such file"),
    ],
)
def test_invalid_input_is_refused_and_nothing_is_written(full: Path, more: list[str], message: str) -> None:
    done = run(full, *(word.format(folder=full.parent.name) for word in more))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(full.parent.iterdir()) == [full]


def test_a_folder_is_never_replaced_and_blank_lines_are_noted(full: Path) -> None:
    (full.parent / "test.csv").mkdir()
    refused = run(full, "--force")
    assert (refused.returncode, refused.stderr) == (
        1,
        "test.csv: found a folder, expected a file; choose another path\n",
    )
    assert not (full.parent / "train.csv").exists()
    full.write_text(full.read_text() + "\n\n")
    done = run(full, test="other.csv")
    assert done.stdout.startswith(f"{full}: 2 blank lines skipped\ntrain.csv: 61 rows")


def test_any_fsspec_file_system_can_be_written_to(full: Path) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("split_data", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.split(str(full), "memory://spooky/train.csv", "memory://spooky/new/test.csv", 0.5, 1, force=False)
    with fsspec.open("memory://spooky/new/test.csv", "rt") as file:
        assert file.readline() == '"id","text","author"\n'
