"""Each fault strikes a job of three sites at a named place; the job is resumed, and nothing may be lost."""

import json
import os
import random
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scaling_fl.checkpoint import store
from tests import builders, typed
from tests.chaos import faults
from tests.conftest import clean_environment

pytestmark = pytest.mark.chaos
NUM_ROUNDS = 3


class Job(NamedTuple):
    """A command, and the files that it wrote."""

    words: list[str]
    folder: Path
    environ: dict[str, str]

    def start(self, fault: dict[str, Any] | None = None, *more: str, cold: bool = False) -> "subprocess.Popen[str]":
        environ = clean_environment() | self.environ
        environ["CHAOS"] = json.dumps(fault or {"place": "", "how": "", "worker": -1, "round": -1, "marker": "/"})
        return typed.popen(
            *self.words, *more, script=Path(faults.__file__), cold=cold, cwd=self.folder, env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, fault: dict[str, Any] | None = None, *more: str, cold: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        process = self.start(fault, *more, cold=cold)
        try:
            out, err = process.communicate()
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(self.words, process.returncode, out, err)

    def state(self) -> dict[str, bytes]:
        tensors, _ = store.read_state(self.folder / "out" / f"round-{NUM_ROUNDS:06d}.safetensors")
        return {name: array.tobytes() for name, array in tensors.items()}

    def record(self) -> dict[str, Any]:
        """What must not depend on faults: the metrics without times, the shard table, the status."""
        (folder,) = (self.folder / "runs").glob("[0-9]*")
        run, info, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("run", "info", "metrics"))
        timeless = {
            name: (metric["steps"], metric["values"] if "second" not in name else None)
            for name, metric in metrics.items()
            if name != "seconds.checkpoint"  # a killed launcher doesn't hear how long the last one took
        }
        return {"status": run["status"], "metrics": timeless, "shards": info["shards"], "model": info["files"]["model"]}


def job(folder: Path, server: str) -> Job:
    """Three sites with 20, 20 and 19 examples, three rounds of two epochs; every round has its checkpoint."""
    folder.mkdir(exist_ok=True)
    words = [
        "with", "site_ids=[-1,-1,-1]", f"num_rounds={NUM_ROUNDS}", "num_local_epochs=2", "task_name=csv",
        f"train_path={builders.write_csv(folder / 'train.csv', 59)}", f"test_path={builders.write_csv(folder / 't.csv', 23, 1)}",
        "text_column=body", "label_column=topic", f"model={builders.pretrained(folder / 'model')}", "batch_size=8",
        "max_seq_len=16", "learning_rate=0.01", "threads_per_site=1", "job_name=news", "checkpoints_dir=out",
        "stall_timeout=10",
    ]  # fmt: skip
    return Job(words, folder, {"SACRED_HOST": server, "SACRED_DATABASE": folder.name} if server else {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    whole = job(tmp_path_factory.mktemp("undisturbed"), "")
    done = whole.run(cold=True)
    assert done.returncode == 0, done.stderr
    return whole


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Job:
    whole = job(tmp_path_factory.mktemp("kept"), "")
    done = whole.run(None, "keep_optimiser=True")
    assert done.returncode == 0, done.stderr
    return whole


# The exit status and last message of the command, by kind of fault.
ENDINGS = {
    "raise": (1, "ZeroDivisionError: a bug at site"),
    "memory": (1, "MemoryError: no memory left"),
    "kill": (1, "ended: killed by SIGKILL; "),
    "stop": (1, "made no progress for 10 s and counts as hung"),
    "launcher SIGKILL": (-signal.SIGKILL, ""),
    "launcher SIGTERM": (128 + signal.SIGTERM, "run the same command again to resume"),
    "launcher SIGINT": (128 + signal.SIGINT, "run the same command again to resume"),
}


def schedule() -> list[Any]:
    """Every place with every kind of fault; a seed chooses worker and round. The quick part has each place and each
    kind at least once."""
    draw = random.Random(20210201)
    cases = []
    for number, place in enumerate(faults.PLACES):
        for kind, how in enumerate(faults.HOWS):
            quick = kind == number % len(faults.HOWS)
            coordinator = place in ("checkpoint", "model", "end")
            fault = {
                "place": place,
                "how": how,
                "worker": 0 if coordinator else draw.randrange(3),
                "round": draw.choice([1, 2]),
            }
            marks = [] if quick else [pytest.mark.thorough]
            cases.append(pytest.param(fault, id=f"{place}-{how}-{fault['worker']}-{fault['round']}", marks=marks))
    return cases


def left_behind(folder: Path) -> list[str]:
    """Temporary files, partial files and named shared memory that the job has left behind."""
    temporary, since = Path(os.environ["TMPDIR"]), (folder / "train.csv").stat().st_mtime
    return [path.name for path in (*temporary.iterdir(), *folder.glob("out/.*"), *memory_since(since))]


def memory_since(since: float) -> list[Path]:
    """Named shared memory created since then that stays although no process maps it."""

    def now() -> set[Path]:
        used = "".join(map(maps, Path("/proc").glob("[0-9]*")))
        return {path for path in Path("/dev/shm").glob("*") if changed(path) > since and str(path) not in used}

    found = now()
    if found:  # other programs create some for a moment
        time.sleep(3)
    return sorted(found & now())


def changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:  # it has ended, or is another user's
        return ""


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder for temporary files of the test's own. Its path is short: there are sockets in it."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("fault", schedule())
def test_nothing_is_lost(fault: dict[str, Any], undisturbed: Job, tmp_path: Path) -> None:
    broken = job(tmp_path / "job", "")
    struck = broken.run(fault | {"marker": str(tmp_path / "marker")})
    assert (tmp_path / "marker").exists(), "the fault never struck"
    status, said = ENDINGS[fault["how"]]
    assert struck.returncode == status, struck.stderr + struck.stdout
    if status > 128 and fault["place"] == "preparation":
        said = "interrupted"
    # After a site's own error, a line names the site and its round.
    assert said in "".join([line for line in struck.stderr.strip().splitlines() if not line.startswith("at site")][-1:])
    builders.wait_for_end(processes_in(tmp_path / "job"))
    left = left_behind(broken.folder)
    if status < 0:  # the next start removes what a killed launcher had no time for; its locks exclude nobody
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


def processes_in(folder: Path) -> list[int]:
    """Processes whose working folder is `folder`: those of the job typed there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").resolve() == folder.resolve() and int(process.name) != os.getpid():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.thorough
@pytest.mark.usefixtures("temporary")
def test_a_preparation_that_hangs_ends_the_job(undisturbed: Job, tmp_path: Path) -> None:
    broken = job(tmp_path / "job", "")
    struck = broken.run({"place": "preparation", "how": "hang", "marker": str(tmp_path / "marker")})
    assert struck.returncode == 1
    assert "the preparation made no progress for 10 s and counts as hung (if it was only slow, raise" in struck.stderr
    assert "in strike" in struck.stderr, "where it is"
    builders.wait_for_end(processes_in(tmp_path / "job"))
    assert left_behind(broken.folder) == []
    assert not (broken.folder / "runs").exists()
    resumed = broken.run()
    assert resumed.returncode == 0, resumed.stderr
    assert broken.state() == undisturbed.state()


@pytest.mark.parametrize("place", ["aggregation", pytest.param("end", marks=pytest.mark.thorough)])
def test_sites_that_are_started_again_by_themselves_reach_the_same_result(
    place: str, undisturbed: Job, tmp_path: Path
) -> None:
    again = job(tmp_path / "job", "")
    fault = {"place": place, "how": "kill", "worker": 0, "round": 2, "marker": str(tmp_path / "marker")}
    done = again.run(fault, "max_restarts=2")
    assert done.returncode == 0, done.stderr
    assert "ended: killed by SIGKILL" in done.stdout
    assert "note: restart 1 of 2, from the last checkpoint" in done.stdout
    assert again.state() == undisturbed.state()
    assert again.record() == undisturbed.record()


@pytest.mark.parametrize("more", [["keep_optimiser=True"], pytest.param([], marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("place", "how", "complete"), [("training", "launcher SIGTERM", 1), ("evaluation", "launcher SIGTERM slow", 2)]
)
def test_a_job_that_is_asked_to_end_publishes_what_is_complete(
    undisturbed: Job, kept: Job, tmp_path: Path, place: str, how: str, complete: int, more: list[str]
) -> None:
    """A round is complete before its evaluation, which never ends here: nobody waits for it."""
    asked, expected = job(tmp_path / "job", ""), kept if more else undisturbed
    fault = {"place": place, "how": how, "worker": 1, "round": 2, "marker": str(tmp_path / "marker")}
    process = asked.start(fault, "checkpoint_every=3", *more)
    while not (tmp_path / "marker").exists():
        assert process.poll() is None
        time.sleep(0.01)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "stopping: saving the last complete round first" in out
    rounds = [path.name for path in sorted((asked.folder / "out").glob("round-*"))]
    assert rounds == [f"round-{complete:06d}.safetensors"]
    resumed = asked.run(None, "checkpoint_every=3", *more)
    assert f"job news resumes after round {complete}" in resumed.stdout
    assert asked.state() == expected.state()
    assert asked.record() == expected.record()


@pytest.mark.parametrize("how", ["launcher SIGKILL", pytest.param("kill", marks=pytest.mark.thorough)])
def test_a_cohort_that_was_killed_goes_on_bitwise_on_another_number_of_processes(tmp_path: Path, how: str) -> None:
    keys = ["num_sites=7", "sites_per_round=4", "keep_optimiser=True", "partition=dirichlet", "alpha=0.5"]
    whole, broken = job(tmp_path / "whole", ""), job(tmp_path / "broken", "")
    done = whole.run(None, *keys)
    assert done.returncode == 0, done.stderr
    assert "7 sites, 4 a round, in 3 processes on cpu" in done.stdout
    # In round 3 the checkpoint of round 2 may still be in progress; that of round 1 is complete.
    fault = {"place": "training", "how": how, "worker": 1, "round": 3, "marker": str(tmp_path / "marker")}
    struck = broken.run(fault, *keys)
    assert struck.returncode == (1 if how == "kill" else -signal.SIGKILL)
    assert "worker 1 (cpu)" in struck.stderr or how != "kill"
    builders.wait_for_end(processes_in(tmp_path / "broken"))
    resumed = broken.run(None, *keys, "site_ids=[-1,-1]")
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"job news resumes after round [12]\b", resumed.stdout)
    assert broken.state() == whole.state()
    assert broken.record() == whole.record()
