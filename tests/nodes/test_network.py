"""A job on several machines: it has the result of a job on one machine, and a failure leaves no machine waiting."""

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
from tests.nodes.network import Machine, network, unavailable
from tests.scripts.script import start, wait_for_row

pytestmark = pytest.mark.nodes
SITES = ("[-1,-1]", "[-1]", "[-1,-1,-1]")  # site_ids by machine
Process = subprocess.Popen


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the model, which all machines read."""
    folder = tmp_path_factory.mktemp("files")
    builders.write_csv(folder / "train.csv", 59)
    builders.write_csv(folder / "t.csv", 23, 1)
    builders.pretrained(folder / "model")
    return folder


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    if reason := unavailable():
        pytest.skip(reason)
    with network(3, tmp_path) as machines:
        yield machines


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


@pytest.fixture(scope="module")
def on_one(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The final state of the same six sites on one machine."""
    folder = tmp_path_factory.mktemp("one")
    words = ["with", *keys(files), "site_ids=[-1,-1,-1,-1,-1,-1]"]
    process = start(folder, *words)
    out = process.communicate()[0]
    assert process.returncode == 0, out
    return state(folder)


def test_six_sites_on_three_machines_equal_six_sites_on_one(
    machines: list[Machine], files: Path, on_one: dict[str, Any]
) -> None:
    """Over 100 Mbit/s, and although node 1 starts late. The same command then reports that the job is finished."""
    for machine in machines:
        machine.limit_traffic("tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms")
    first, third = (
        machine.start(*keys(files), f"site_ids={SITES[machine.number]}", count=3)
        for machine in (machines[0], machines[2])
    )
    text = ""
    while "is waiting on port 29500 for node" not in text:
        assert first.stdout is not None
        line = first.stdout.readline()
        assert line, text
        text += line
    second = machines[1].start(*keys(files), f"site_ids={SITES[1]}", count=3, cold=True)
    outputs = outputs_of([first, second, third])
    assert [process.returncode for process in (first, second, third)] == [0, 0, 0], "\n".join(outputs)
    assert "6 sites on 3 nodes (2 processes here) on cpu" in outputs[0]
    assert "this is node 1: node 0 shows the rounds" in outputs[1]
    assert_same(state(machines[0].folder), on_one)
    assert not (machines[1].folder / "out").exists(), "node 0 keeps the checkpoints"
    assert not (machines[1].folder / "runs").exists()

    processes = start_all(machines, files)
    for output in outputs_of(processes):
        assert "job news is finished" in output
    assert [process.returncode for process in processes] == [0, 0, 0]


def test_latency_between_machines_does_not_change_the_result(
    machines: list[Machine], files: Path, on_one: dict[str, Any]
) -> None:
    """50 ms in each direction, and 100 Mbit/s."""
    try:
        machines[2].move_away(0.05)
    except OSError as error:
        pytest.skip(f"TAP devices can't be created here: {error}")
    for machine in machines:
        machine.limit_traffic("tbf", "rate", "100mbit", "burst", "256k", "latency", "50ms")
    processes = start_all(machines, files)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
    assert_same(state(machines[0].folder), on_one)
    metrics = json.loads((machines[0].folder / "runs" / "1" / "metrics.json").read_text())
    assert min(metrics["seconds.aggregate"]["values"]) > 0.1, "at least one round trip"


def test_traffic_between_machines_does_not_grow_with_the_number_of_sites(
    machines: list[Machine], files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole jobs are counted, because the reader of the table may lag behind. Their start adds some 3 % to 24 rounds."""
    rounds, per_round = 24, []
    for sites in (("[-1]", "[-1]", "[-1]"), SITES):
        before = [machine.sent() for machine in machines]
        name = f"n{len(sites[2])}"
        processes = [
            machine.start(
                *keys(files, f"num_rounds={rounds}", "eval_every=100", "checkpoint_every=100", f"job_name={name}", f"checkpoints_dir={name}", "model=tiny"),
                f"site_ids={sites[machine.number]}", count=3,
            )
            for machine in machines
        ]  # fmt: skip
        outputs_of(processes)
        per_round.append([(after.sent() - sent) / rounds for after, sent in zip(machines, before, strict=True)])
    size = sum(
        array.size
        for name, array in state(machines[0].folder, rounds, f"n{len(SITES[2])}").items()
        if array.dtype == np.float32
    )
    ring = 2 * 2 / 3 * 8 * size  # bytes sent per node in a ring all-reduce of 64-bit numbers between three leaders
    with capsys.disabled():
        for sites, sent in zip((3, 6), per_round, strict=True):
            print(
                f"\n{sites} sites on 3 nodes: {[round(value) for value in sent]} bytes sent per node and round; "
                f"a ring all-reduce would send {ring:.0f}"
            )
    for sent in per_round:
        assert max(sent) < 1.1 * ring, "10% for headers and the control plane"
    assert sum(per_round[1]) < 1.02 * sum(per_round[0]), "twice as many sites send no more"


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


def worker_on(machine: Machine) -> int:
    """The pid of one of the machine's workers: they have more threads than the other processes."""
    pids = subprocess.check_output(["ip", "netns", "pids", machine.namespace], text=True).split()
    return int(max(pids, key=lambda pid: len(list(Path(f"/proc/{pid}/task").iterdir()))))


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


@pytest.mark.thorough
def test_sites_are_restarted_on_all_machines(machines: list[Machine], files: Path, on_one: dict[str, Any]) -> None:
    processes = start_all(machines, files, "max_restarts=2", "num_rounds=300")
    text = wait_for_row(processes[0], 2)
    os.kill(worker_on(machines[1]), signal.SIGKILL)
    text = wait_for_row(processes[0], 4, text + "round    loss")
    assert "restart 1 of 2, from the last checkpoint" in text
    processes[0].send_signal(signal.SIGTERM)
    outputs_of(processes)
    assert [process.returncode for process in processes] == [143, 143, 143]
