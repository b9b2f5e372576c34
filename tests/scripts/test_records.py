"""A job's record when machines are lost, and when a command would overwrite another job's record."""

import csv
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.scripts.script import start, wait_for_row

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments for two sites and two rounds."""
    return [*builders.two_sites(tmp_path), "num_rounds=2"]


def record(folder: Path) -> dict[str, Any]:
    return {path.name: path.read_bytes() for path in (folder / "runs" / "1").iterdir()}


@pytest.mark.parametrize("checkpoint_every", [1, 4])
def test_losing_a_machine_and_its_disk_leaves_no_gap_in_the_record(
    words: list[str], tmp_path: Path, checkpoint_every: int
) -> None:
    keys = [f"checkpoints_dir={tmp_path / 'out'}", f"checkpoint_every={checkpoint_every}"]
    (tmp_path / "lost").mkdir()
    (tmp_path / "new").mkdir()
    process = start(tmp_path / "lost", *words, *keys, "num_rounds=9999")
    wait_for_row(process, 13)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    shutil.rmtree(tmp_path / "lost")
    last = max(int(path.stem[-6:]) for path in (tmp_path / "out").glob("round-*")) + 2
    resumed = start(tmp_path / "new", *words, *keys, f"num_rounds={last}")
    assert "job j resumes after round" in resumed.communicate()[0]
    assert resumed.returncode == 0
    metrics = json.loads((tmp_path / "new" / "runs" / "1" / "metrics.json").read_text())
    for name in ("train.loss", "validation.accuracy", "seconds.train"):
        first = int(not name.startswith("validation"))
        assert metrics[name]["steps"] == list(range(first, last + 1)), name


def test_a_record_without_checkpoints_is_not_overwritten(command: Command, words: list[str], tmp_path: Path) -> None:
    assert command(*words, "checkpoints_dir=None").returncode == 0
    before = record(tmp_path)
    metrics, run, info = (json.loads(before[name]) for name in ("metrics.json", "run.json", "info.json"))
    assert run["result"]["validation"]["loss"]["last"] == metrics["validation.loss"]["values"][-1]
    classes = list(csv.DictReader(before["validation_per_class.csv"].decode().splitlines()))
    assert sum(float(row["f1"]) for row in classes) / len(classes) == pytest.approx(
        metrics["validation.macro_f1"]["values"][-1]
    )
    assert sum(int(row["examples"]) for row in classes) == metrics["validation.examples"]["values"][-1]
    for row in csv.DictReader(before["shards.csv"].decode().splitlines()):
        assert sum(int(row[f"label {label}"]) for label in info["label_names"]) == int(row["examples"])
    for keys in (["checkpoints_dir=None"], []):  # the default was None in version 0.1.0
        again = command(*words, *keys)
        assert again.returncode == 0, again.stderr
        assert "job j is finished: 2 rounds are done and recorded, but there is no checkpoint" in again.stdout
    for key, message in (
        (
            "checkpoints_dir=new",
            "checkpoints_dir=new: job j is finished: 2 rounds are done and recorded, but there is no checkpoint",
        ),
        ("num_rounds=3", "2 rounds are done and recorded, but there is no checkpoint; to train again, use another"),
        ("learning_rate=0.5", "learning_rate was 5e-05, is now 0.5. Use the earlier values, or a new job_name"),
        (f"train_path={tmp_path / 'test.csv'}", "the data have changed since the job started"),
    ):
        refused = command(*words, key)
        assert refused.returncode == 1
        assert message in refused.stderr.strip().splitlines()[-1]
    assert record(tmp_path) == before


def test_another_jobs_folder_is_refused_without_a_record(command: Command, words: list[str], tmp_path: Path) -> None:
    assert command(*words, "checkpoints_dir=out").returncode == 0
    before = record(tmp_path), sorted(os.walk(tmp_path / "runs"))
    for name in ("job_name=k", "job_name=None"):
        refused = command(*words, name, "checkpoints_dir=out")
        assert refused.returncode == 1
        assert "it holds the checkpoints of job j; set job_name=j to resume" in refused.stderr.strip().splitlines()[-1]
    assert (record(tmp_path), sorted(os.walk(tmp_path / "runs"))) == before


def test_a_job_runs_once_per_folder_whatever_tmpdir_is(words: list[str], tmp_path: Path, short_folder: Path) -> None:
    words += ["num_rounds=9999", "checkpoints_dir=None"]
    running = start(tmp_path, *words)
    wait_for_row(running, 1)
    second = start(tmp_path, *words, TMPDIR=str(short_folder))
    output = second.communicate()[0]
    assert second.returncode == 1
    assert "job_name=j: another run of this job is writing to runs/_events/j.jsonl; wait for it to end" in output
    running.send_signal(signal.SIGINT)
    running.communicate()
    events = [
        json.loads(line)["event"] for line in (tmp_path / "runs" / "_events" / "j.jsonl").read_text().splitlines()
    ]
    assert events.count("started") == events.count("interrupted") == 1
    assert "died" not in events
