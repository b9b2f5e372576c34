"""Jobs that end early: killed workers, signals, a closed terminal, parameters that are no longer finite."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders, zygote
from tests.conftest import SCRIPT, clean_environment
from tests.scripts.script import start, wait_for_row, workers_of

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_a_killed_worker_ends_the_job_and_is_named_last(words: list[str], tmp_path: Path, command: Command) -> None:
    words += ["num_rounds=9999", "job_name=live"]
    process = start(tmp_path, *words)
    text = wait_for_row(process, 1)
    assert "3 sites on cpu" in text
    second = command(*words)
    assert second.returncode == 1
    assert (
        f"is in progress on this machine, recorded in runs/1 (process {process.pid}); wait for it to end"
        in second.stderr
    )
    # Only workers map the token store, not the fork server or the resource tracker.
    workers = [pid for pid in workers_of(process) if "tokens.bin" in Path(f"/proc/{pid}/maps").read_text()]
    assert len(workers) == 3
    children = workers_of(process)
    os.kill(workers[1], signal.SIGKILL)
    rest = process.communicate()[0]
    assert process.returncode == 1
    last = rest.strip().splitlines()[-1]
    assert "(cpu) ended: killed by SIGKILL" in last
    assert "out of memory" in last
    builders.wait_for_end(children)
    run = json.loads((tmp_path / "runs" / "1" / "run.json").read_text())
    assert run["status"] == "FAILED"
    assert "killed by SIGKILL" in "".join(run["fail_trace"])
    output = (tmp_path / "runs" / "1" / "cout.txt").read_text()
    assert "round    loss" in output, "the output before the failure is kept"
    assert last.removeprefix("Failed: ") in output
    assert "run record   runs/1\n" in rest


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_processes_and_is_recorded(words: list[str], tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, *words, "num_rounds=9999", "checkpoints_dir=None", cold=how is signal.SIGTERM)
    text = wait_for_row(process, 1)
    children = workers_of(process)
    if how is signal.SIGTERM:
        os.kill(process.pid, how)
    else:
        os.killpg(process.pid, how)  # to the whole process group, like a terminal
    rest = process.communicate()[0]
    assert process.returncode == 128 + how
    assert "note: checkpoints_dir=None: neither checkpoints nor the final model are saved\n" in text
    assert "stopping: nothing is saved, because of checkpoints_dir=None" in rest
    assert "interrupted; nothing is saved, because of checkpoints_dir=None" in rest
    assert not (tmp_path / "checkpoints").exists()
    assert "Traceback" not in rest
    builders.wait_for_end(children)
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "INTERRUPTED"


def test_an_interrupt_that_also_ends_the_reader_of_the_output_is_still_recorded_as_one(
    words: list[str], tmp_path: Path
) -> None:
    process = start(tmp_path, *words, "num_rounds=9999", "checkpoint_every=9999", "job_name=tee", "checkpoints_dir=out")
    wait_for_row(process, 2)
    assert process.stdout is not None
    process.stdout.close()  # like `| tee log`
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "INTERRUPTED"
    assert len(list((tmp_path / "out").glob("round-*.safetensors"))) == 1, "the last complete round is published"


def test_closing_the_terminal_ends_the_job_after_publishing_the_last_complete_round(
    words: list[str], tmp_path: Path
) -> None:
    """The shell and the kernel both send SIGHUP for a closed terminal; the second one must not count."""
    terminal, shell_end = pty.openpty()
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "-i"],
        stdin=shell_end,
        stdout=shell_end,
        stderr=shell_end,
        cwd=tmp_path,
        env=clean_environment(),
    )
    os.close(shell_end)
    keys = ["num_rounds=9999", "checkpoint_every=9999", "job_name=closed", "checkpoints_dir=out"]
    os.write(terminal, f"{shlex.join([sys.executable, str(SCRIPT), *zygote.last_values([*words, *keys])])}\n".encode())
    text = ""
    while not re.search(r" 2  +\d\.\d{4} ", text):
        text += os.read(terminal, 4096).decode(errors="replace")
    os.close(terminal)
    shell.wait()
    record = tmp_path / "runs" / "1" / "run.json"
    deadline = time.monotonic() + 240
    while json.loads(record.read_text())["status"] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert json.loads(record.read_text())["status"] == "INTERRUPTED"
    assert len(list((tmp_path / "out").glob("round-*.safetensors"))) == 1


def test_parameters_that_are_no_longer_finite_end_the_job(command: Command, words: list[str], tmp_path: Path) -> None:
    done = command(*words, "optimiser=sgd", "learning_rate=1e30", "checkpoints_dir=out")
    assert done.returncode == 1
    assert (
        "are no longer finite after local training, or moved by 16384 or more; lower learning_rate"
        in done.stderr.strip().splitlines()[-1]
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["events.jsonl"], "no checkpoint with broken parameters"
