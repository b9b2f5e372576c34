"""Sweeps of real jobs: a failing cell, a sweep that is killed and typed again, two at once, and the live table."""

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from scaling_fl.sweep import cells, runner, slots
from scaling_fl.sweep.cells import Cell
from scaling_fl.sweep.view import CellTable
from tests import zygote
from tests.conftest import ROOT, clean_environment
from tests.reporting import builders

Popen = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in processes that have imported everything already."""

    lock = threading.Lock()

    def popen(argv: list[str], *, env: dict[str, str], stdout: Any, stderr: Any, **_: Any) -> "subprocess.Popen[str]":
        with lock:  # two sweeps are two threads here
            return zygote.popen(*argv[2:], stdout=stdout, stderr=stderr, cwd=os.getcwd(), env=env)

    monkeypatch.setattr(runner, "Popen", popen)


def run(folder: Path, todo: list[Cell], jobs: int = 2) -> tuple[runner.Runner, str]:
    table = CellTable("s", todo, console=Console(file=open(folder / "out.txt", "a"), width=200))  # noqa: SIM115
    found = runner.Runner(folder, slots.Slots(8, (), 100e9, jobs), table, clean_environment())
    with table:
        found.run(todo)
    table.console.file.close()
    return found, (folder / "out.txt").read_text()


def starts(cell: Cell) -> int:
    """How often the job was started."""
    record = cells.state(cell).record
    return 0 if record is None else len(record.info["starts"])


@pytest.mark.usefixtures("forked")
def test_a_failing_cell_is_told_with_its_reason_and_the_others_complete(base: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"train_path": path, "seed": seed} for seed in (1, 2) for path in ("train.csv", "nothing.csv")]
    todo = cells.named_cells("s", {key: value for key, value in base.items() if key != "train_path"}, rows)
    found, told = run(tmp_path, todo)
    assert [cells.state(cell).status for cell in todo] == ["complete", "new", "complete", "new"]
    assert set(found.failures) == {todo[1].name, todo[3].name}
    assert "Refused: train_path='nothing.csv': there is no such file" in found.failures[todo[1].name]
    assert f"{todo[0].name}: complete (test accuracy " in told
    assert f"{todo[1].name}: failed (Refused: train_path='nothing.csv'" in told
    again, _ = run(tmp_path, todo)
    assert set(again.failures) == set(found.failures)
    log = (tmp_path / f"{todo[1].name}.log").read_text()
    assert log.count("Refused: train_path='nothing.csv'") == 2, "a log keeps what earlier runs have said"
    assert [starts(cell) for cell in todo] == [1, 0, 1, 0], "complete cells are skipped"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("reading\nRefused: no such file\nruns/1\n", "Refused: no such file"),
        ("Failed: first\nFailed: site 1 ran\n\n", "Failed: site 1 ran"),
        # The file has the output of all runs of the cell: the error of one before is none of this one's.
        ("Failed: last week\n" + "round\n" * 60 + "Killed\n", "Killed"),
        ("\n \n", "exit status 9"),
    ],
)
def test_the_reason_of_a_failure_is_the_last_error_that_the_job_has_printed(
    tmp_path: Path, content: str, reason: str
) -> None:
    (tmp_path / "cell.log").write_text(content)
    assert runner._reason(tmp_path / "cell.log", 9) == reason


def test_a_cell_that_a_run_elsewhere_completes_at_this_moment_has_not_failed(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = cells.named_cells("s", base, [{"seed": 1}])
    looks = []  # the run elsewhere completes after the first look

    def is_held(cell: Cell) -> bool:
        looks.append("held")
        return len(looks) == 1

    def state(cell: Cell) -> cells.State:
        looks.append("state")
        return cells.State("complete" if len(looks) > 1 else "started")

    monkeypatch.setattr(cells, "is_held", is_held)
    monkeypatch.setattr(cells, "state", state)
    found = runner.Runner(
        tmp_path, slots.Slots(8, (), 100e9), CellTable("s", [cell], console=Console(file=io.StringIO()))
    )
    (tmp_path / f"{cell.name}.log").touch()
    assert not found._ended(cell, 1)
    assert found.failures == {}


@pytest.mark.usefixtures("forked")
def test_two_sweeps_at_once_divide_the_cells(base: dict[str, Any], tmp_path: Path) -> None:
    todo = cells.named_cells("s", base, [{"seed": seed} for seed in range(5)])
    sides = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sides.append(threading.Thread(target=run, args=(tmp_path / name, todo, 1)))
        sides[-1].start()
    for side in sides:
        side.join()
    assert [cells.state(cell).status for cell in todo] == ["complete"] * 5
    assert [starts(cell) for cell in todo] == [1] * 5
    outputs = [(tmp_path / name / "out.txt").read_text() for name in ("one", "two")]
    for output in outputs:
        assert output.count(": complete") == 5, output
    assert "failed" not in "".join(outputs)


@pytest.mark.thorough
def test_two_machines_with_one_checkpoints_dir_divide_the_cells(base: dict[str, Any], tmp_path: Path) -> None:
    """Machines know each other's jobs by leases alone, as do users with temporary folders of their own."""
    keys = base | {name: str(tmp_path / base[name]) for name in ("train_path", "test_path")}
    study = {"base": keys | {"checkpoints_dir": f"{tmp_path}/shared/{{job_name}}"}, "grid": {"seed": [1, 2]}}
    machines = []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:  # short: sockets are in them
        for temporary in (one, two):
            machine = tmp_path / Path(temporary).name
            machine.mkdir()
            (machine / "study.yaml").write_text(yaml.safe_dump(study))
            command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), "study.yaml", "--jobs", "1"]
            environ = clean_environment() | {"TMPDIR": temporary}
            machines.append(subprocess.Popen(command, cwd=machine, env=environ, stdout=subprocess.PIPE, text=True))
        outputs = [machine.communicate()[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    todo = cells.named_cells("study", study["base"], [{"seed": seed} for seed in (1, 2)])
    assert not (tmp_path / "runs").exists(), "a third machine knows of the jobs by what is beside the checkpoints"
    assert [cells.state(cell).status for cell in todo] == ["complete"] * 2
    assert [starts(cell) for cell in todo] == [1, 1]
    assert [output.count(": complete (test accuracy ") for output in outputs] == [2, 2]


def test_a_sweep_that_is_killed_leaves_no_job_behind_and_goes_on_when_it_is_typed_again(
    base: dict[str, Any], tmp_path: Path
) -> None:
    grid = {"seed": [1, 2]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": base | {"num_rounds": 400}, "grid": grid}))
    command = [sys.executable, str(ROOT / "scripts" / "sweep.py"), "study.yaml", "--jobs", "1"]
    todo = cells.named_cells("study", base | {"num_rounds": 400}, [{"seed": seed} for seed in (1, 2)])
    first = subprocess.Popen(command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while cells.state(todo[0]).round < 2:
        time.sleep(0.1)
        assert first.poll() is None, first.stdout and first.stdout.read()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    while cells.is_held(todo[0]):  # the job saves its last complete round and ends
        time.sleep(0.1)
    saved = cells.state(todo[0])
    assert saved.status == "started"
    assert saved.record is not None
    assert saved.record.entry["status"] == "INTERRUPTED"
    # Fewer rounds than before may not be left; a resume goes on after those that are saved.
    rounds = saved.round + 2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": base | {"num_rounds": rounds}, "grid": grid}))
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    todo = cells.named_cells("study", base | {"num_rounds": rounds}, [{"seed": seed} for seed in (1, 2)])
    assert [cells.state(cell).status for cell in todo] == ["complete", "complete"]
    assert [starts(cell) for cell in todo] == [2, 1]
    record = cells.state(todo[0]).record
    assert record is not None
    assert record.info["starts"][1]["after_round"] > 0
    folder = tmp_path / "runs" / "_sweeps" / "study"
    assert "| seeds | test accuracy |" in done.stdout
    assert {path.name for path in folder.iterdir()} >= {"results.csv", "report.html", "memory.json"}
    assert json.loads((folder / "memory.json").read_text()) != {}


def test_many_cells_are_summarised_and_the_running_ones_come_first(tmp_path: Path) -> None:
    todo = cells.named_cells("s", {}, [{"seed": seed} for seed in range(100)])
    console = Console(width=80, height=24, file=io.StringIO())
    table = CellTable("s", todo, console=console)
    for number, status in ((98, "running"), (99, "failed"), (0, "complete")):
        table.change(todo[number], status)
    with console.capture() as captured:
        console.print(table.render())
    lines = captured.get().splitlines()
    assert len(lines) <= 23
    assert ["seed-98" in lines[1], "seed-99" in lines[2], "seed-0 " in lines[3]] == [True] * 3
    assert "1 running, 1 failed, 1 complete, 97 waiting of 100" in lines[-1]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("others", "title", "heading", "value"),
    [
        ({}, "test accuracy", "accuracy", "0.6250"),
        ({"validation.perplexity": [9.0, 8.5]}, "test perplexity", "perplexity", "8.5000"),
    ],
)
def test_the_result_of_a_cell_is_that_of_its_last_round(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    others: dict[str, list[float]],
    title: str,
    heading: str,
    value: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    todo = cells.named_cells("s", {"num_rounds": 3}, [{"seed": 1}])
    (tmp_path / "runs" / "_events").mkdir(parents=True)
    builders.cell(tmp_path / "runs" / "_events", todo[0].name, [0.25, 0.75, 0.625], others=others, seed=1, num_rounds=3)
    console = Console(width=80, file=io.StringIO())
    table = CellTable("s", todo, {todo[0].name: cells.state(todo[0])}, console)
    with console.capture() as captured:
        table.change(todo[0], "complete")
        console.print(table.render())
    told, head, row, *_ = captured.get().splitlines()
    assert told.endswith(f"complete ({title} {value})")
    assert head.split() == ["cell", "status", "round", heading, "time"]
    assert row.split() == ["seed-1", "complete", "2/3", value]


class Job:
    """A process that ends at the third look."""

    number = 0

    def __init__(self, argv: list[str], env: dict[str, str], **_: Any) -> None:
        Job.number += 1
        self.argv, self.env, self.signals = argv, env, list[int]()
        self.pid, self.returncode, self._looks = Job.number, 1, 0

    def poll(self) -> int | None:
        self._looks += 1
        return self.returncode if self._looks == 3 else None

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a sweep starts, in their order."""
    jobs: list[Job] = []

    def popen(*arguments: Any, **more: Any) -> Job:
        jobs.append(Job(*arguments, **more))
        return jobs[-1]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "Popen", popen)
    monkeypatch.setattr(runner, "_POLL", 0.0)
    monkeypatch.setattr(slots, "memory_used", lambda process: 0.0)
    return jobs


def unseen(todo: list[Cell]) -> CellTable:
    return CellTable("s", todo, console=Console(file=io.StringIO()))


def test_the_memory_of_like_cells_is_the_highest_that_one_of_them_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "Popen", Job)
    monkeypatch.setattr(runner, "_POLL", 0.0)
    monkeypatch.setattr(runner, "_LOOK", 0.0)
    monkeypatch.setattr(runner, "_LOOK_SHARE", float("inf"))
    used = {Job.number + 1: [3.0, 5.0, 4.0], Job.number + 2: [2.0, 1.0, 1.0]}
    monkeypatch.setattr(slots, "memory_used", lambda process: used[process].pop(0))
    todo = cells.named_cells("s", {"threads_per_site": 1, "site_ids": [-1]}, [{"seed": 1}, {"seed": 2}])
    places = slots.Slots(1, (), 100e9)
    runner.Runner(tmp_path, places, CellTable("s", todo, console=Console(file=io.StringIO()))).run(todo)
    assert places.measured == {slots.shape(todo[0]): 5.0}
    runner.save_memory(tmp_path, places.measured)
    assert runner.load_memory(tmp_path) == places.measured


def test_a_sweep_that_is_stopped_lets_its_jobs_save_before_it_kills_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Job]
) -> None:
    todo = cells.named_cells("s", {"threads_per_site": 1, "site_ids": [-1]}, [{"seed": 1}, {"seed": 2}])
    table, poll = unseen(todo), Job.poll
    found = runner.Runner(tmp_path, slots.Slots(1, (), 100e9), table)

    def stopped_meanwhile(job: Job) -> int | None:
        found.stop()
        return poll(job)

    monkeypatch.setattr(Job, "poll", stopped_meanwhile)
    found.run(todo)
    assert [job.signals for job in started] == [[signal.SIGTERM, signal.SIGKILL, signal.SIGKILL]]
    assert (found.stopped, found.failures, table.counts()) == (True, {}, "2 waiting")


def test_a_large_cell_is_not_overtaken_by_a_small_one(tmp_path: Path, started: list[Job]) -> None:
    rows = [{"site_ids": [-1] * number, "seed": seed} for seed, number in enumerate((1, 2, 1))]
    todo = cells.named_cells("s", {"threads_per_site": 1}, rows)
    runner.Runner(tmp_path, slots.Slots(2, (), 100e9), unseen(todo)).run(todo)
    assert [job.argv[3] for job in started] == [f"job_name={cell.name}" for cell in todo]


def test_each_job_sees_the_gpus_that_it_was_given(tmp_path: Path, started: list[Job]) -> None:
    todo = cells.named_cells("s", {"site_ids": [0]}, [{"seed": 1}, {"seed": 2}])
    environ = {"CUDA_VISIBLE_DEVICES": "3,5", "HF_HOME": "/models"}
    runner.Runner(tmp_path, slots.Slots(8, (3, 5), 100e9), unseen(todo), environ).run(todo)
    assert [job.env for job in started] == [environ | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("3", "5")]


def test_a_cell_whose_run_elsewhere_dies_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[Job]
) -> None:
    todo = cells.named_cells("s", {}, [{"seed": 1}])
    looks: list[Cell] = []  # the run elsewhere lives for two of them

    def is_held(cell: Cell) -> bool:
        looks.append(cell)
        return len(looks) < 3

    monkeypatch.setattr(runner, "_ASK", 0.0)
    monkeypatch.setattr(cells, "is_held", is_held)
    monkeypatch.setattr(cells, "state", lambda cell: cells.State("complete" if started else "started"))
    table = unseen(todo)
    runner.Runner(tmp_path, slots.Slots(8, (), 100e9), table).run(todo)
    assert (len(started), table.counts()) == (1, "1 complete")
