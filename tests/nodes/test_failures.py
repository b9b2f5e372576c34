"""Machines that are lost, fail, stop or differ: no other machine is left waiting, and the message says why."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests import builders
from tests.nodes.job import SITES, assert_same, keys, outputs_of, start_all, state, worker_on
from tests.nodes.network import Machine
from tests.scripts.script import start, wait_for_row

pytestmark = pytest.mark.nodes


@pytest.mark.parametrize(
    ("victim", "how"), [(2, "killed"), (1, "cut off"), pytest.param(0, "killed", marks=pytest.mark.thorough)]
)
def test_losing_a_machine_ends_the_job_and_the_job_resumes(
    machines: list[Machine], files: Path, tmp_path: Path, victim: int, how: str
) -> None:
    processes = start_all(machines, files, "num_rounds=999")
    wait_for_row(processes[0], 3)
    if how == "killed":
        os.killpg(processes[victim].pid, signal.SIGKILL)
    else:
        machines[victim].cut()
    outputs = outputs_of(processes)
    for rank in {0, 1, 2} - {victim}:
        assert processes[rank].returncode == 1
        (message,) = [line for line in outputs[rank].splitlines() if "is lost: " in line] or [outputs[rank]]
        assert f"node {victim} (10.77.0.{victim + 1}) is lost: " in message
    if how == "cut off":
        assert processes[victim].returncode == 1
        assert "node 0 (10.77.0.1) is lost: no heartbeat for 10 s" in outputs[victim]
    machines[victim].cut(up=True)

    newest = max(int(path.stem[-6:]) for path in (machines[0].folder / "out").glob("round-*"))
    resumed = start_all(machines, files, f"num_rounds={newest + 2}")
    outputs = outputs_of(resumed)
    assert [process.returncode for process in resumed] == [0, 0, 0], "\n".join(outputs)
    assert f"job news resumes after round {newest}" in outputs[0]
    (tmp_path / "one").mkdir()
    alone = start(tmp_path / "one", "with", *keys(files, f"num_rounds={newest + 2}"), "site_ids=[-1,-1,-1,-1,-1,-1]")
    assert alone.wait() == 0
    assert_same(state(machines[0].folder, newest + 2), state(tmp_path / "one", newest + 2))


def test_a_site_that_fails_on_one_machine_is_named_on_the_others(machines: list[Machine], files: Path) -> None:
    processes = start_all(machines, files, "num_rounds=999")
    wait_for_row(processes[0], 1)
    os.kill(worker_on(machines[2]), signal.SIGKILL)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [1, 1, 1]
    for output in outputs[:2]:
        assert "on node 2 (" in output
        assert "ended: killed by SIGKILL" in output


def test_a_signal_on_one_machine_stops_all_after_publishing(machines: list[Machine], files: Path) -> None:
    processes = start_all(machines, files, "num_rounds=999", "checkpoint_every=500")
    wait_for_row(processes[0], 2)
    processes[1].send_signal(signal.SIGTERM)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [143, 143, 143], "\n".join(outputs)
    assert len(list((machines[0].folder / "out").glob("round-*"))) == 1


def test_nodes_that_differ_are_refused_and_the_difference_is_named(
    machines: list[Machine], files: Path, tmp_path: Path
) -> None:
    other_files = tmp_path / "other"
    other_files.mkdir()
    for path in files.iterdir():
        (other_files / path.name).symlink_to(path)
    (other_files / "train.csv").unlink()
    builders.write_csv(other_files / "train.csv", 58)
    processes = [
        machine.start(
            *keys(other_files if machine.number == 1 else files), f"site_ids={SITES[machine.number]}", count=3
        )
        for machine in machines
    ]
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [1, 1, 1]
    for output in outputs:
        assert "node 1 and node 0 have different data (digest " in output
        assert "Traceback" not in output
    assert not (machines[0].folder / "runs").exists()

    processes = start_all(machines[:1], files, WORLD_SIZE="3")
    same_rank = [machines[1].start(*keys(files), "site_ids=[-1]", count=3) for _ in range(2)]
    while all(process.poll() is None for process in same_rank):
        time.sleep(0.05)
    refused = next(process for process in same_rank if process.poll() is not None)
    assert refused.returncode == 1
    assert "RANK=1: already taken by the node at 10.77.0.2; give each node its own rank" in refused.communicate()[0]
    other_world = machines[2].start(*keys(files), "site_ids=[-1]", count=4)
    assert "WORLD_SIZE=4 there, but 3 on node 0; use the same value on every node" in outputs_of([other_world])[0]
    wrong_rank = machines[2].start(*keys(files), "site_ids=[-1]", count=3, rank=3)
    assert "node 3 of 3: ranks go from 0 to 2" in outputs_of([wrong_rank])[0]
    other_config = machines[2].start(*keys(files, "learning_rate=0.5"), "site_ids=[-1]", count=3)
    outputs = outputs_of([*processes, *(process for process in same_rank if process is not refused), other_config])
    for output in outputs:
        assert (
            "node 2 and node 0 have different configurations: learning_rate=0.5 and 0.01; use the same values on every node"
            in output
        )
