"""Cells as jobs of Slurm, by submitit."""

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling_fl.errors import UserError
from scaling_fl.sweep.cells import Cell
from scaling_fl.sweep.runner import SCRIPT
from scaling_fl.text import one_line

_JOBS = "slurm.json"  # cell -> Slurm's job id


class Command:
    """Runs one cell in a Slurm job. If Slurm preempts the job or its time is up, the cell is queued again, and resumes."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)

    def __call__(self) -> int:
        status = subprocess.run([sys.executable, str(SCRIPT), *self.words], check=False).returncode
        if status:
            raise RuntimeError(f"exit status {status}")  # so that Slurm shows the job as failed
        return status

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        return _submitit().helpers.DelayedSubmission(Command(self.words))


def submit(todo: Sequence[Cell], sweep: str, folder: Path, parameters: Mapping[str, Any], cluster: str) -> list[str]:
    """Hand the cells to `cluster`: slurm, local or debug. Returns a line for each; those still in the queue are left there.

    `parameters` are submitit's: timeout_min, mem_gb, cpus_per_task, gpus_per_node, slurm_partition and so on.
    """
    submitit = _submitit()
    jobs_folder = folder.resolve() / "slurm"
    jobs_folder.mkdir(parents=True, exist_ok=True)
    known = _known(folder)
    queued = {
        name for name, job in known.items() if cluster == "slurm" and not submitit.SlurmJob(jobs_folder, job).done()
    }
    try:
        executor = submitit.AutoExecutor(folder=str(jobs_folder), cluster=cluster)
        executor.update_parameters(**({"name": sweep, "timeout_min": 24 * 60} | dict(parameters)))
    except (NameError, TypeError, RuntimeError, ValueError) as error:
        raise UserError(
            f"slurm: {one_line(str(error), 200)}; see submitit's parameters, such as timeout_min, mem_gb, slurm_partition"
        ) from error
    # The jobs inherit the environment, and unpickle `Command`.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH"))))
    fresh = [cell for cell in todo if cell.name not in queued]
    with executor.batch() if fresh else contextlib.nullcontext():
        jobs = [executor.submit(Command(cell.words())) for cell in fresh]
    if cluster == "debug":  # it runs a job when its result is asked for
        for job in jobs:
            job.result()
    known |= {cell.name: job.job_id for cell, job in zip(fresh, jobs, strict=True)}
    (folder / _JOBS).write_text(json.dumps(known, indent=2))
    told = {cell.name: f"{cell.name}: job {known[cell.name]}" for cell in todo}
    return [told[cell.name] + (", already queued" if cell.name in queued else "") for cell in todo]


def _known(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _JOBS).read_text())
        return {str(name): str(job) for name, job in found.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _submitit() -> Any:
    try:
        return importlib.import_module("submitit")
    except ImportError as error:
        raise UserError(
            "--slurm: the package submitit isn't installed; ./run-local.sh -m pip install submitit"
        ) from error
