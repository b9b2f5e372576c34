"""A job with six sites on three machines: its keys, its processes and its final state."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl import state_file
from tests.nodes.network import Machine

SITES = ("[-1,-1]", "[-1]", "[-1,-1,-1]")  # site_ids by machine
Process = subprocess.Popen


def keys(files: Path, *more: str) -> list[str]:
    return [
        "num_rounds=3", "num_local_epochs=2", "task_name=csv", f"train_path={files}/train.csv", f"test_path={files}/t.csv",
        "text_column=body", "label_column=topic", f"model={files}/model", "batch_size=4", "max_seq_len=16",
        "learning_rate=0.01", "threads_per_site=1", "job_name=news", "checkpoints_dir=out", *more,
    ]  # fmt: skip


def start_all(machines: Sequence[Machine], files: Path, *more: str, **environ: str) -> list["Process[str]"]:
    return [
        machine.start(*keys(files, *more), f"site_ids={SITES[machine.number]}", count=len(machines), **environ)
        for machine in machines
    ]


def outputs_of(processes: Sequence["Process[str]"]) -> list[str]:
    """Wait for all processes to end; return their outputs."""
    return [process.communicate()[0] for process in processes]


def state(folder: Path, round_: int = 3, name: str = "out") -> dict[str, Any]:
    return dict(state_file.read_state(folder / name / f"round-{round_:06d}.safetensors")[0])


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert np.array_equal(array, b[name]), name


def worker_on(machine: Machine) -> int:
    """The pid of one of the machine's workers: they have more threads than the other processes."""
    pids = subprocess.check_output(["ip", "netns", "pids", machine.namespace], text=True).split()
    return int(max(pids, key=lambda pid: len(list(Path(f"/proc/{pid}/task").iterdir()))))
