"""A job on several machines has the result of a job on one machine, and more sites send no more."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.nodes.job import SITES, assert_same, keys, outputs_of, start_all, state, worker_on
from tests.nodes.network import Machine
from tests.scripts.script import start, wait_for_row

pytestmark = pytest.mark.nodes


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


def test_adapters_and_what_they_add_to_the_base_are_the_same_on_two_machines(
    machines: list[Machine], files: Path, tmp_path: Path
) -> None:
    """Each machine holds its own copy of the frozen base and of the residual that the aggregation adds to it."""
    lora = ("trainable=lora", "lora_rank=2", "lora_aggregation=exact", "num_rounds=2")
    alone = start(tmp_path, "with", *keys(files, *lora), "site_ids=[-1,-1,-1]")
    out = alone.communicate()[0]
    assert alone.returncode == 0, out
    processes = start_all(machines[:2], files, *lora)
    outputs = outputs_of(processes)
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    expected = state(tmp_path, 2)
    assert [name for name in expected if ".delta." in name], list(expected)
    assert_same(state(machines[0].folder, 2), expected)


@pytest.mark.thorough
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
