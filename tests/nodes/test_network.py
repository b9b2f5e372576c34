"""A job on several machines with their own addresses: the same result as on one, and no machine is left waiting."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl import state_file
from tests import builders
from tests.nodes.network import Machine, missing, network
from tests.scripts.test_train_federated import start, wait_for_row

pytestmark = pytest.mark.nodes
SITES = ("[-1,-1]", "[-1]", "[-1,-1,-1]")  # of each machine
Process = subprocess.Popen


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that each machine has a copy of."""
    folder = tmp_path_factory.mktemp("files")
    builders.write_csv(folder / "train.csv", 59)
    builders.write_csv(folder / "t.csv", 23, 1)
    builders.pretrained(folder / "model")
    return folder


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    if why := missing():
        pytest.skip(why)
    with network(3, tmp_path) as found:
        yield found


def keys(files: Path, *more: str) -> list[str]:
    return [
        "num_rounds=3", "num_local_epochs=2", "task_name=csv", f"train_path={files}/train.csv", f"test_path={files}/t.csv",
        "text_column=body", "label_column=topic", f"model={files}/model", "batch_size=4", "max_seq_len=16",
        "learning_rate=0.01", "threads_per_site=1", "job_name=news", "checkpoints_dir=out", *more,
    ]  # fmt: skip


def begin(machines: Sequence[Machine], files: Path, *more: str, **environ: str) -> list["Process[str]"]:
    return [
        machine.start(*keys(files, *more), f"site_ids={SITES[machine.number]}", count=len(machines), **environ)
        for machine in machines
    ]


def end(processes: Sequence["Process[str]"]) -> list[str]:
    """The output of all, once all have ended."""
    return [process.communicate()[0] for process in processes]


def state(folder: Path, round_: int = 3, name: str = "out") -> dict[str, Any]:
    return dict(state_file.read_state(folder / name / f"round-{round_:06d}.safetensors")[0])


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert np.array_equal(array, b[name]), name


@pytest.fixture(scope="module")
def on_one(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of the same six sites on one machine."""
    folder = tmp_path_factory.mktemp("one")
    words = ["with", *keys(files), "site_ids=[-1,-1,-1,-1,-1,-1]"]
    process = start(folder, *words)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return state(folder)


def test_six_sites_on_three_machines_are_six_sites_on_one(
    machines: list[Machine], files: Path, on_one: dict[str, Any]
) -> None:
    """Node 1 starts late, over 100 Mbit/s, with the same result. Typed again, the job says that it is finished."""
    for machine in machines:
        machine.slow_down("tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms")
    first, third = (
        machine.start(*keys(files), f"site_ids={SITES[machine.number]}", count=3)
        for machine in (machines[0], machines[2])
    )
    said = ""
    while "waits at port 29500 for node 1" not in said:
        assert first.stdout is not None
        line = first.stdout.readline()
        assert line, said
        said += line
    second = machines[1].start(*keys(files), f"site_ids={SITES[1]}", count=3, cold=True)
    outputs = end([first, second, third])
    assert [process.returncode for process in (first, second, third)] == [0, 0, 0], "\n".join(outputs)
    assert "6 sites on 3 nodes (2 processes here) on cpu" in outputs[0]
    assert "this is node 1: node 0 shows the rounds" in outputs[1]
    assert_same(state(machines[0].folder), on_one)
    assert not (machines[1].folder / "out").exists(), "node 0 keeps the checkpoints"
    assert not (machines[1].folder / "runs").exists()

    processes = begin(machines, files)
    for output in end(processes):
        assert "job news is finished" in output
    assert [process.returncode for process in processes] == [0, 0, 0]


def test_latency_between_machines_changes_no_result(
    machines: list[Machine], files: Path, on_one: dict[str, Any]
) -> None:
    """50 ms in each direction, and 100 Mbit/s."""
    try:
        machines[2].move_away(0.05)
    except OSError as error:
        pytest.skip(f"no device can be made here whose traffic this process carries: {error}")
    for machine in machines:
        machine.slow_down("tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms")
    processes = begin(machines, files)
    outputs = end(processes)
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
    assert_same(state(machines[0].folder), on_one)
    metrics = json.loads((machines[0].folder / "runs" / "1" / "metrics.json").read_text())
    assert min(metrics["seconds.aggregate"]["values"]) > 0.1, "there and back, at least once"


def test_bytes_between_machines_are_those_of_one_sum_however_many_sites(
    machines: list[Machine], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    per_round = []
    for sites in (("[-1]", "[-1]", "[-1]"), SITES):
        processes = [
            machine.start(
                *keys(files, "num_rounds=12", "eval_every=100", f"job_name=n{len(sites[2])}", f"checkpoints_dir=out{len(sites[2])}", "model=tiny"),
                f"site_ids={sites[machine.number]}", count=3,
            )
            for machine in machines
        ]  # fmt: skip
        text = wait_for_row(processes[0], 2)
        before = [machine.sent() for machine in machines]
        wait_for_row(processes[0], 11, text)
        per_round.append([(after.sent() - sent) / 9 for after, sent in zip(machines, before, strict=True)])
        end(processes)
    size = sum(
        array.size
        for name, array in state(machines[0].folder, 12, f"out{len(SITES[2])}").items()
        if array.dtype == np.float32
    )
    ring = 2 * 2 / 3 * 8 * size  # bytes of 64-bit numbers between three leaders
    with capsys.disabled():
        for sites, sent in zip((3, 6), per_round, strict=True):
            print(
                f"\n{sites} sites on 3 nodes: {[round(value) for value in sent]} bytes sent a round; a ring's sum: {ring:.0f}"
            )
    for sent in per_round:
        assert max(sent) < 1.1 * ring, "and what headers and control cost"
    assert sum(per_round[1]) < 1.02 * sum(per_round[0]), "twice the sites send no more"


@pytest.mark.parametrize(
    ("victim", "how"), [(2, "killed"), (1, "cut off"), pytest.param(0, "killed", marks=pytest.mark.thorough)]
)
def test_a_machine_that_is_lost_ends_the_job_and_the_job_resumes(
    machines: list[Machine], files: Path, tmp_path: Path, victim: int, how: str
) -> None:
    processes = begin(machines, files, "num_rounds=999")
    wait_for_row(processes[0], 3)
    if how == "killed":
        os.killpg(processes[victim].pid, signal.SIGKILL)
    else:
        machines[victim].cut()
    outputs = end(processes)
    for rank in {0, 1, 2} - {victim}:
        assert processes[rank].returncode == 1
        (said,) = [line for line in outputs[rank].splitlines() if "is lost: " in line] or [outputs[rank]]
        assert f"node {victim} (10.77.0.{victim + 1}) is lost: " in said
    if how == "cut off":
        assert processes[victim].returncode == 1
        assert "node 0 (10.77.0.1) is lost: no heartbeat for 10 s" in outputs[victim]
    machines[victim].cut(up=True)

    newest = max(int(path.stem[-6:]) for path in (machines[0].folder / "out").glob("round-*"))
    again = begin(machines, files, f"num_rounds={newest + 2}")
    outputs = end(again)
    assert [process.returncode for process in again] == [0, 0, 0], "\n".join(outputs)
    assert f"job news resumes after round {newest}" in outputs[0]
    (tmp_path / "one").mkdir()
    alone = start(tmp_path / "one", "with", *keys(files, f"num_rounds={newest + 2}"), "site_ids=[-1,-1,-1,-1,-1,-1]")
    assert alone.wait() == 0
    assert_same(state(machines[0].folder, newest + 2), state(tmp_path / "one", newest + 2))


def test_a_site_that_fails_on_another_machine_is_named_here(machines: list[Machine], files: Path) -> None:
    processes = begin(machines, files, "num_rounds=999")
    wait_for_row(processes[0], 1)
    os.kill(worker_on(machines[2]), signal.SIGKILL)
    outputs = end(processes)
    assert [process.returncode for process in processes] == [1, 1, 1]
    for output in outputs[:2]:
        assert "on node 2 (" in output
        assert "ended: killed by SIGKILL" in output


def worker_on(machine: Machine) -> int:
    """The pid of a site's process: sites have the most threads."""
    pids = subprocess.check_output(["ip", "netns", "pids", machine.namespace], text=True).split()
    return int(max(pids, key=lambda pid: len(list(Path(f"/proc/{pid}/task").iterdir()))))


def test_a_signal_on_any_machine_stops_all_after_publishing(machines: list[Machine], files: Path) -> None:
    processes = begin(machines, files, "num_rounds=999", "checkpoint_every=500")
    wait_for_row(processes[0], 2)
    processes[1].send_signal(signal.SIGTERM)
    outputs = end(processes)
    assert [process.returncode for process in processes] == [143, 143, 143], "\n".join(outputs)
    assert len(list((machines[0].folder / "out").glob("round-*"))) == 1


def test_nodes_that_differ_are_refused_with_the_reason(machines: list[Machine], files: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir()
    for path in files.iterdir():
        (others / path.name).symlink_to(path)
    (others / "train.csv").unlink()
    builders.write_csv(others / "train.csv", 58)
    processes = [
        machine.start(*keys(others if machine.number == 1 else files), f"site_ids={SITES[machine.number]}", count=3)
        for machine in machines
    ]
    outputs = end(processes)
    assert [process.returncode for process in processes] == [1, 1, 1]
    for output in outputs:
        assert "node 1 and node 0 have different data (digest " in output
        assert "Traceback" not in output
    assert not (machines[0].folder / "runs").exists()

    processes = begin(machines[:1], files, WORLD_SIZE="3")
    twins = [machines[1].start(*keys(files), "site_ids=[-1]", count=3) for _ in range(2)]
    while all(process.poll() is None for process in twins):
        time.sleep(0.05)
    refused = next(process for process in twins if process.poll() is not None)
    assert refused.returncode == 1
    assert "RANK=1: already taken by the node at 10.77.0.2; give each node its own rank" in refused.communicate()[0]
    alien = machines[2].start(*keys(files), "site_ids=[-1]", count=4)
    assert "WORLD_SIZE=4 there, and 3 at node 0; give all nodes the same" in end([alien])[0]
    wrong = machines[2].start(*keys(files), "site_ids=[-1]", count=3, rank=3)
    assert "node 3 of 3: ranks go from 0 to 2" in end([wrong])[0]
    other = machines[2].start(*keys(files, "learning_rate=0.5"), "site_ids=[-1]", count=3)
    outputs = end([*processes, *(twin for twin in twins if twin is not refused), other])
    for output in outputs:
        assert (
            "node 2 and node 0 have different configurations: learning_rate=0.5 and 0.01; use the same values on every node"
            in output
        )


@pytest.mark.thorough
def test_sites_start_again_on_all_machines(machines: list[Machine], files: Path, on_one: dict[str, Any]) -> None:
    processes = begin(machines, files, "max_restarts=2", "num_rounds=300")
    text = wait_for_row(processes[0], 2)
    os.kill(worker_on(machines[1]), signal.SIGKILL)
    text = wait_for_row(processes[0], 4, text + "round    loss")
    assert "restart 1 of 2, from the last checkpoint" in text
    processes[0].send_signal(signal.SIGTERM)
    end(processes)
    assert [process.returncode for process in processes] == [143, 143, 143]
