"""Cells handed to Slurm by submitit: its local and debug executors, and the batch file for Slurm itself."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.errors import UserError
from scaling_fl.sweep import cells, slurm
from tests.scripts.executable import executable

SlurmJob = pytest.importorskip("submitit").SlurmJob


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)


def test_the_local_executor_runs_every_cell(base: dict[str, Any], tmp_path: Path) -> None:
    todo = cells.named_cells("s", base, [{"seed": 1}, {"seed": 2}])
    lines = slurm.submit(todo, "s", tmp_path / "sweep", {"timeout_min": 10}, "local")
    assert [line.partition(":")[0] for line in lines] == [cell.name for cell in todo]
    assert set(json.loads((tmp_path / "sweep" / "slurm.json").read_text())) == {cell.name for cell in todo}
    while {cells.state(cell).status for cell in todo} != {"complete"}:  # the test's time-out is the limit
        time.sleep(0.2)


def test_the_debug_executor_runs_a_cell_here(base: dict[str, Any], tmp_path: Path) -> None:
    todo = cells.named_cells("s", base, [{"seed": 1}])
    slurm.submit(todo, "s", tmp_path / "sweep", {}, "debug")
    assert cells.state(todo[0]).status == "complete"


def test_a_preempted_cell_is_queued_again_with_the_same_command() -> None:
    command = slurm.Command(["with", "job_name=a"])
    again = command.checkpoint()
    assert isinstance(again.function, slurm.Command)
    assert again.function.words == command.words


def test_a_job_that_fails_is_a_failure_for_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 3))
    with pytest.raises(RuntimeError, match=r"^exit status 3$"):
        slurm.Command(["with", "job_name=a"])()


def test_the_batch_file_asks_slurm_for_what_the_sweep_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = executable(tmp_path, "sbatch", f'cp "$1" {tmp_path}/batch; echo "Submitted batch job 4711"')
    executable(tmp_path, "srun", "exit 0")
    executable(tmp_path, "squeue", "exit 0")
    executable(tmp_path, "sacct", 'echo "JobID|State|NodeList"; echo "4711_0|PENDING|"; echo "4711_1|PENDING|"')
    monkeypatch.setenv("PATH", path)
    todo = cells.named_cells("s", {}, [{"seed": 1}, {"seed": 2}])
    parameters = {"timeout_min": 90, "gpus_per_node": 2, "cpus_per_task": 8, "slurm_partition": "long"}
    lines = slurm.submit(todo, "s", tmp_path / "sweep", parameters, "slurm")
    assert lines == ["s.seed-1: job 4711_0", "s.seed-2: job 4711_1"]
    batch = (tmp_path / "batch").read_text()
    for option in (
        "--time=90",
        "--gpus-per-node=2",
        "--cpus-per-task=8",
        "--partition=long",
        "--array=0-1",
        "--job-name=s",
    ):
        assert f"#SBATCH {option}" in batch, batch
    assert "submitit.core._submit" in batch
    again = slurm.submit(todo, "s", tmp_path / "sweep", parameters, "slurm")
    assert again == ["s.seed-1: job 4711_0, already queued", "s.seed-2: job 4711_1, already queued"]
    executable(tmp_path, "sbatch", f'cp "$1" {tmp_path}/batch; echo "Submitted batch job 4712"')
    # The first job has ended, however far its cell has come: it is handed in once more.
    SlurmJob(tmp_path / "sweep" / "slurm", "4711_0").paths.result_pickle.touch()
    again = slurm.submit(todo, "s", tmp_path / "sweep", parameters, "slurm")
    assert again == ["s.seed-1: job 4712", "s.seed-2: job 4711_1, already queued"]
    slurm.submit(todo, "s", tmp_path / "other", {}, "slurm")
    assert "#SBATCH --time=1440\n" in (tmp_path / "batch").read_text(), "without a limit of the sweep's own, a day"


def test_a_parameter_that_slurm_does_not_have_is_one_error(tmp_path: Path) -> None:
    todo = cells.named_cells("s", {}, [{"seed": 1}])
    with pytest.raises(UserError, match=r"slurm: .*; see submitit's parameters, such as timeout_min"):
        slurm.submit(todo, "s", tmp_path, {"colour": "red"}, "local")
