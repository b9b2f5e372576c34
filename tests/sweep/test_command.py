"""scripts/sweep.py as users call it, without training."""

import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from scaling_fl.sweep import results, runner
from scaling_fl.sweep.cells import Cell
from tests import zygote
from tests.conftest import ROOT, clean_environment
from tests.reporting import builders
from tests.scripts.imported import imported

Sweep = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "study.yaml").write_text("base: {task_name: demo, model: tiny, site_ids: [0]}\ngrid: {seed: [1, 2]}\n")

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return zygote.run(*arguments, script=ROOT / "scripts" / "sweep.py", cwd=tmp_path, env=clean_environment())

    return run


@pytest.mark.parametrize(
    "arguments", [["with", "num_sites=[1,3]", "--dry-run"], ["--dry-run", "with", "num_sites=[1,3]"]]
)
def test_a_dry_run_lists_the_jobs_and_starts_nothing(sweep: Sweep, tmp_path: Path, arguments: list[str]) -> None:
    done = sweep("study.yaml", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:5]] == [
        [f"study.seed-{seed}.num_sites-{sites}", "new", "0/10"] for seed in (1, 2) for sites in (1, 3)
    ]
    assert lines[5].startswith("4 jobs, 4 left; time left unknown; ")
    assert not (tmp_path / "runs").exists()


def test_each_job_that_is_left_is_a_shell_line(sweep: Sweep) -> None:
    done = sweep("study.yaml", "with", "text_column=a b", "--print-commands", "--name", "x")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == (
        "./run-local.sh scripts/train_federated.py with job_name=x.seed-1 task_name=demo model=tiny 'site_ids=[0]' "
        "'text_column=a b' seed=1"
    )
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["nothing.yaml"], 1, "Refused: nothing.yaml: expected a sweep as YAML"),
        (["study.yaml", "with", "sede=1"], 1, "Refused: cell study.seed-1: sede=1: unknown key; did you mean seed?"),
        (["report", "study.yaml"], 1, "Refused: sweep study: none of its 2 jobs has started; run it without `report`"),
        (["with", "nothing"], 1, "Refused: nothing: expected key=value, or one of demo, paper"),
        ([], 2, "expected the file of a sweep, or `with` and keys"),
        (["study.yaml", "other.yaml"], 2, "expected the file of a sweep"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    sweep: Sweep, tmp_path: Path, arguments: list[str], status: int, said: str
) -> None:
    done = sweep(*arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_jobs_of_the_same_names_with_other_settings_are_refused(sweep: Sweep, tmp_path: Path) -> None:
    (tmp_path / "runs" / "_events").mkdir(parents=True)
    builders.job(tmp_path / "runs" / "_events", "study.seed-1", seed=1)
    done = sweep("study.yaml")
    assert done.returncode == 1
    assert "Refused: sweep study: 1 of its jobs ran with other settings: " in done.stderr
    assert "or set --name" in done.stderr


class Runner:
    """Runs nothing: the first cell completes, and the others fail; or `presses` stops it."""

    ran: ClassVar[list[str]] = []
    fails: ClassVar[bool] = False
    presses: ClassVar[Callable[[], None] | None] = None

    def __init__(self, folder: Path, places: Any, view: Any):
        self.failures: dict[str, str] = {}
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def run(self, todo: Sequence[Cell]) -> None:
        Runner.ran = [cell.name for cell in todo]
        if Runner.fails:
            self.failures = {cell.name: "Refused: why" for cell in todo[1:]}
        if Runner.presses is not None:
            Runner.presses()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in a folder with a sweep of three jobs, of which the second is complete."""
    monkeypatch.chdir(tmp_path)
    base = "batch_size: 4, num_local_epochs: 2, num_sites: 3, checkpoints_dir: null, num_rounds: 2"
    (tmp_path / "study.yaml").write_text(f"base: {{{base}}}\ngrid: {{seed: [1, 2, 3]}}\n")
    (tmp_path / "runs" / "_events").mkdir(parents=True)
    builders.job(tmp_path / "runs" / "_events", "study.seed-2", seed=2)
    monkeypatch.setattr(runner, "Runner", Runner)
    monkeypatch.setattr(results, "write", lambda *_: [])
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return imported("sweep")


@pytest.mark.parametrize("fails", [False, True])
def test_the_exit_status_says_whether_a_job_has_failed_and_complete_ones_are_skipped(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fails: bool
) -> None:
    monkeypatch.setattr(Runner, "fails", fails)
    assert script.main(["study.yaml"]) == int(fails)
    assert Runner.ran == ["study.seed-1", "study.seed-3"]
    said = capsys.readouterr()
    assert "sweep study: 3 cells, 1 complete; logs in runs/_sweeps/study\n" in said.out
    failure = "failed: study.seed-3: Refused: why\n  runs/_sweeps/study/study.seed-3.log\n"
    assert said.err == (failure if fails else "")
    assert Path("runs/_sweeps/study/memory.json").exists()
    assert script.main(["study.yaml", "--print-commands"]) == 0
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["seed=1", "seed=3"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_sweep_and_says_how_it_goes_on(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(Runner, "presses", lambda: handlers[number](number, None))
    assert script.main(["study.yaml"]) == 130
    assert capsys.readouterr().err == "stopped: type the same command again to go on\n"
    assert Path("runs/_sweeps/study/memory.json").exists()
