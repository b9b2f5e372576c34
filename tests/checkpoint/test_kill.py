"""Processes killed while they write a checkpoint: published checkpoints stay intact."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from tests.checkpoint import writer
from tests.conftest import ROOT
from tests.line import Line


def start(url: str, moment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.checkpoint.writer", url, moment],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        text=True,
    )


def writes(folder: Path) -> bool:
    """Whether a file is being written there."""
    try:
        return any(folder.glob(".partial-*/round-*"))
    except FileNotFoundError:  # it was published between two looks
        return False


def assert_intact(checkpoints: CheckpointStore, published: int, tmp_path: Path) -> None:
    """Assert that the reported checkpoints are intact, and one more if the writer was killed before it reported it."""
    rounds = checkpoints.rounds()
    assert rounds in (list(range(published, 0, -1)), list(range(published + 1, 0, -1)))
    while rounds:
        found = checkpoints.fetch_newest(tmp_path / "newest")
        assert found is not None
        tensors, header, damaged = found
        assert (header["round"], damaged) == (rounds[0], [])
        assert np.array_equal(tensors["w"], writer.state(rounds[0])["w"])
        checkpoints.set_aside(newer_than=rounds.pop(0) - 1)


@pytest.mark.parametrize(
    ("moment", "published"),
    [("during fsync", 2), ("before the rename", 2), ("after the rename", 3)],
)
def test_a_writer_killed_around_the_rename_leaves_published_checkpoints_intact(
    tmp_path: Path, moment: str, published: int
) -> None:
    process = start(str(tmp_path / "c"), moment)
    assert process.communicate()[0].split() == ["1", "2"]
    assert process.returncode == -9
    checkpoints = CheckpointStore(str(tmp_path / "c"))
    assert checkpoints.rounds() == list(range(published, 0, -1))
    partial = [path for path in (tmp_path / "c").iterdir() if path.name.startswith(".partial-")]
    assert len(partial) == 1, "the kill leaves the unfinished file behind"
    checkpoints.probe()
    assert not partial[0].exists()
    assert_intact(checkpoints, published, tmp_path)


def test_a_writer_killed_while_writing_a_file_leaves_the_previous_checkpoint_intact(tmp_path: Path) -> None:
    process = start(str(tmp_path / "c"), "never")
    assert process.stdout is not None
    for line in process.stdout:
        if line == "2\n":
            break
    deadline = time.monotonic() + 240
    while not writes(tmp_path / "c"):
        assert time.monotonic() < deadline
    process.kill()
    lines = process.communicate()[0].split()
    assert_intact(CheckpointStore(str(tmp_path / "c")), int(lines[-1]) if lines else 2, tmp_path)


@pytest.mark.parametrize("sent", [1, 3_000, 500_000, 1_000_000])
def test_a_writer_killed_during_an_upload_leaves_the_previous_checkpoint_intact(
    line: Line, tmp_path: Path, sent: int
) -> None:
    url = os.environ["TEST_BUCKET"] + "/jobs/killed"
    process = start(url, "never")
    assert process.stdout is not None
    for text in process.stdout:
        if text == "2\n":
            break
    line.cut_after(sent, process.kill)  # nothing more arrives, not even from socket buffers
    lines = process.communicate()[0].split()
    assert process.returncode == -9
    line.down = False
    assert_intact(CheckpointStore(url), int(lines[-1]) if lines else 2, tmp_path)
