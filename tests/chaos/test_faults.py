"""Faults strike a job with three sites at every place; the job is then resumed, and nothing may be lost."""

import json
import random
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.chaos import faults
from tests.chaos.job import Job, job
from tests.chaos.leftovers import left_behind, processes_in

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    reference = job(tmp_path_factory.mktemp("undisturbed"), "")
    done = reference.run(cold=True)
    assert done.returncode == 0, done.stderr
    return reference


@pytest.fixture(scope="module")
def undisturbed_keeping_optimiser(tmp_path_factory: pytest.TempPathFactory) -> Job:
    reference = job(tmp_path_factory.mktemp("keeping"), "")
    done = reference.run(None, "keep_optimiser=True")
    assert done.returncode == 0, done.stderr
    return reference


# The command's exit status and a part of its last message, by kind of fault.
ENDINGS = {
    "raise": (1, "ZeroDivisionError: a bug at site"),
    "memory": (1, "MemoryError: no memory left"),
    "kill": (1, "ended: killed by SIGKILL; "),
    "stop": (1, "made no progress for 10 s and counts as hung"),
    "launcher SIGKILL": (-signal.SIGKILL, ""),
    "launcher SIGTERM": (128 + signal.SIGTERM, "run the same command again to "),
    "launcher SIGINT": (128 + signal.SIGINT, "run the same command again to "),
}


def schedule() -> list[Any]:
    """Combine every place with every kind of fault, with worker and round drawn from a fixed seed.

    The cases not marked `thorough` cover each place and each kind at least once.
    """
    rng = random.Random(20210201)
    cases = []
    for row, place in enumerate(faults.PLACES):
        for column, kind in enumerate(faults.KINDS):
            quick = column == row % len(faults.KINDS)
            coordinator = place in ("checkpoint", "model", "end")
            fault = {
                "place": place,
                "kind": kind,
                "worker": 0 if coordinator else rng.randrange(3),
                "round": rng.choice([1, 2]),
            }
            marks = [] if quick else [pytest.mark.thorough]
            cases.append(pytest.param(fault, id=f"{place}-{kind}-{fault['worker']}-{fault['round']}", marks=marks))
    return cases


@pytest.fixture
def short_tmpdir(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Set TMPDIR to an empty folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.usefixtures("short_tmpdir")
@pytest.mark.parametrize("fault", schedule())
def test_nothing_is_lost(fault: dict[str, Any], undisturbed: Job, tmp_path: Path) -> None:
    broken = job(tmp_path / "job", "")
    struck = broken.run(fault | {"marker": str(tmp_path / "marker")})
    assert (tmp_path / "marker").exists(), "the fault never struck"
    status, message = ENDINGS[fault["kind"]]
    assert struck.returncode == status, struck.stderr + struck.stdout
    if status > 128 and fault["place"] == "preparation":
        message = "interrupted"
    # If a site raised the error, one more line names the site and its round.
    lines = [line for line in struck.stderr.strip().splitlines() if not line.startswith("at site")]
    assert message in "".join(lines[-1:])
    builders.wait_for_end(processes_in(tmp_path / "job"))
    left = left_behind(broken.folder)
    if status < 0:  # the next start removes a killed launcher's partial files; its lock files are no longer locked
        left = [name for name in left if not name.endswith(".lock") and not name.startswith(".partial-")]
    assert left == []
    started = fault["place"] != "preparation"
    if started and status > 0:
        expected = "INTERRUPTED" if status > 128 else "FAILED"
        (record,) = (broken.folder / "runs").glob("[0-9]*")
        assert json.loads((record / "run.json").read_text())["status"] == expected

    resumed = broken.run()
    assert resumed.returncode == 0, resumed.stderr
    assert broken.state() == undisturbed.state()
    assert broken.record() == undisturbed.record()
    events = [json.loads(line) for line in (broken.folder / "out" / "events.jsonl").read_text().splitlines()]
    assert sum(event["event"] == "started" for event in events) == 1 + (started and fault["place"] != "end")
    if started and status < 0:
        assert sum(event["event"] == "died" for event in events) == 1
    assert left_behind(broken.folder) == []


@pytest.mark.thorough
@pytest.mark.usefixtures("short_tmpdir")
def test_a_preparation_that_hangs_ends_the_job(undisturbed: Job, tmp_path: Path) -> None:
    broken = job(tmp_path / "job", "")
    struck = broken.run({"place": "preparation", "kind": "hang", "marker": str(tmp_path / "marker")})
    assert struck.returncode == 1
    assert "the preparation made no progress for 10 s and counts as hung (if it was only slow, raise" in struck.stderr
    assert "in strike" in struck.stderr, "the stack trace shows where it hangs"
    builders.wait_for_end(processes_in(tmp_path / "job"))
    assert left_behind(broken.folder) == []
    assert not (broken.folder / "runs").exists()
    resumed = broken.run()
    assert resumed.returncode == 0, resumed.stderr
    assert broken.state() == undisturbed.state()


@pytest.mark.parametrize("place", ["aggregation", pytest.param("end", marks=pytest.mark.thorough)])
def test_sites_restarted_by_the_launcher_reach_the_same_result(place: str, undisturbed: Job, tmp_path: Path) -> None:
    restarted = job(tmp_path / "job", "")
    fault = {"place": place, "kind": "kill", "worker": 0, "round": 2, "marker": str(tmp_path / "marker")}
    done = restarted.run(fault, "max_restarts=2", "report=True")
    assert done.returncode == 0, done.stderr
    assert "ended: killed by SIGKILL" in done.stdout
    assert "note: restart 1 of 2, from the last checkpoint" in done.stdout
    assert restarted.state() == undisturbed.state()
    assert restarted.record() == undisturbed.record()


@pytest.mark.parametrize("more", [["keep_optimiser=True"], pytest.param([], marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("place", "kind", "complete"), [("training", "launcher SIGTERM", 1), ("evaluation", "launcher SIGTERM slow", 2)]
)
def test_a_job_that_is_asked_to_stop_publishes_the_last_complete_round(
    undisturbed: Job,
    undisturbed_keeping_optimiser: Job,
    tmp_path: Path,
    place: str,
    kind: str,
    complete: int,
    more: list[str],
) -> None:
    """A round is complete before its evaluation. The evaluation never ends here, and must not be waited for."""
    stopped, expected = job(tmp_path / "job", ""), undisturbed_keeping_optimiser if more else undisturbed
    fault = {"place": place, "kind": kind, "worker": 1, "round": 2, "marker": str(tmp_path / "marker")}
    process = stopped.start(fault, "checkpoint_every=3", *more)
    while not (tmp_path / "marker").exists():
        assert process.poll() is None
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopping: saving the last complete round first" in out
    rounds = [path.name for path in sorted((stopped.folder / "out").glob("round-*"))]
    assert rounds == [f"round-{complete:06d}.safetensors"]
    resumed = stopped.run(None, "checkpoint_every=3", *more)
    assert f"job news resumes after round {complete}" in resumed.stdout
    assert stopped.state() == expected.state()
    assert stopped.record() == expected.record()


@pytest.mark.parametrize("kind", ["launcher SIGKILL", pytest.param("kill", marks=pytest.mark.thorough)])
def test_a_killed_job_with_cohorts_resumes_bitwise_with_another_number_of_processes(tmp_path: Path, kind: str) -> None:
    keys = ["num_sites=7", "sites_per_round=4", "keep_optimiser=True", "partition=dirichlet", "alpha=0.5"]
    whole, killed = job(tmp_path / "whole", ""), job(tmp_path / "killed", "")
    done = whole.run(None, *keys)
    assert done.returncode == 0, done.stderr
    assert "7 sites, 4 a round, in 3 processes on cpu" in done.stdout
    # In round 3, the checkpoint of round 2 may still be in progress; the checkpoint of round 1 is complete.
    fault = {"place": "training", "kind": kind, "worker": 1, "round": 3, "marker": str(tmp_path / "marker")}
    struck = killed.run(fault, *keys)
    assert struck.returncode == (1 if kind == "kill" else -signal.SIGKILL)
    assert "worker 1 (cpu)" in struck.stderr or kind != "kill"
    builders.wait_for_end(processes_in(tmp_path / "killed"))
    resumed = killed.run(None, *keys, "site_ids=[-1,-1]")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"job news resumes after round [12]\b", resumed.stdout)
    assert killed.state() == whole.state()
    assert killed.record() == whole.record()
