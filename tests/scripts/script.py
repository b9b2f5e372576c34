"""Run scripts/train_federated.py, wait for rows of its table, and compare states."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaling_fl.checkpoint import store
from tests import zygote
from tests.conftest import clean_environment

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def state_of(folder: Path, round_: int) -> dict[str, np.ndarray]:
    return store.read_state(folder / f"round-{round_:06d}.safetensors")[0]


def assert_bitwise_equal(first: Path, second: Path, round_: int) -> None:
    a, b = state_of(first, round_), state_of(second, round_)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name
    model = "model/model.safetensors"
    assert (first / model).read_bytes() == (second / model).read_bytes()


def start(folder: Path, *arguments: str, cold: bool = False, **environ: str) -> "subprocess.Popen[str]":
    """Start the command in its own session. Its output, with standard error, can be read line by line."""
    return zygote.popen(
        *arguments, cold=cold,
        cwd=folder, env=clean_environment() | {"PYTHONUNBUFFERED": "1"} | environ, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_row(process: "subprocess.Popen[str]", round_: int, text: str = "") -> str:
    """Read the output up to the table's row of a round; return `text` and everything read."""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if line.split()[:1] == [str(round_)] and text.count("round    loss"):
            return text
    pytest.fail(f"no row of round {round_} in:\n{text}")


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """All processes of the job except the launcher, found by their session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == process.pid and int(folder.name) != process.pid:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(folder.name)] * (state != "Z")
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found
