"""A job that is typed again after it was recorded."""

import contextlib
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import JobFailed, NodeLost, OutOfMemory, UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime import launcher
from scaling_fl.runtime.job import Job
from scaling_fl.tracking.events import EventLog
from tests.tracking import builders


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The events of a job that kept no checkpoints."""
    plan, log = builders.plan(), EventLog(tmp_path / "news.jsonl")
    start = {"host": "h", "after_round": 0, "environment": {}, "devices": ["cpu", "cpu"]}
    info = {"label_names": [], "data_digest": plan.data_digest}
    log.append("started", sacred=builders.SACRED, config=plan.config.to_mapping(), start=start, info=info)
    for number in (1, 2):
        builders.round_(log, number, 0.5)
    log.append("completed")
    log.close()
    return log.path


def again(history: Path, num_nodes: int, num_rounds: int = 2) -> None:
    """Type the job again."""
    plan = builders.plan(round_=0)
    job = Job(contextlib.ExitStack())
    job.link = Mock(node=Mock(count=num_nodes))
    job._check_recorded(replace(plan, config=replace(plan.config, num_rounds=num_rounds)), history)


def test_a_job_that_is_recorded_as_complete_ends_well(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        again(finished, num_nodes=1)
    assert ended.value.code == 0
    assert "job news is finished: 2 rounds are done and recorded" in capsys.readouterr().out


@pytest.mark.parametrize(("num_nodes", "num_rounds"), [(2, 2), (1, 3)])
def test_what_nobody_else_knows_or_what_is_missing_is_an_error(finished: Path, num_nodes: int, num_rounds: int) -> None:
    """Other nodes can't see the record: without the error they would wait for this node."""
    with pytest.raises(UserError, match="2 rounds are done and recorded, but there is no checkpoint; to train again"):
        again(finished, num_nodes, num_rounds)


@pytest.mark.parametrize(
    ("folder", "resumed_after", "saved", "unnamed", "message"),
    [
        (None, 0, None, False, "; nothing is saved, because of checkpoints_dir=None"),
        ("out", 0, None, False, "; no round is saved in out: run the same command again to start over"),
        ("out", 4, None, False, "; round 4 is saved in out: run the same command again to resume"),
        ("out", 4, 6, False, "; round 6 is saved in out: run the same command again to resume"),
        ("out", 0, 6, True, "; round 6 is saved in out: run the same command again with job_name=news to resume"),
    ],
)
def test_an_interrupted_job_says_what_is_saved(
    folder: str | None, resumed_after: int, saved: int | None, unnamed: bool, message: str
) -> None:
    job = Job(contextlib.ExitStack())
    assert job.after_interrupt() == "", "nothing was prepared"
    job.plan, job._unnamed = builders.plan(folder, round_=resumed_after), unnamed
    if saved is not None:
        job._on_event({"event": "checkpoint", "round": saved, "path": "out/round", "seconds": 0.5})
    assert job.after_interrupt() == message
    job.plan = replace(job.plan, node=1)
    assert job.after_interrupt() == "", "node 0 says it"


def test_a_job_that_a_restart_cannot_help_is_not_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def fail(error: Exception) -> None:
        attempts.append(error)
        raise error

    job, plan = Job(contextlib.ExitStack()), builders.plan("out")
    job.plan = replace(plan, config=replace(plan.config, max_restarts=3))
    monkeypatch.setattr(job, "_prepare", lambda config: job.plan)
    for error, expected in (
        (OutOfMemory("cuda:0: out of memory"), 1), (NodeLost("node 1 is lost"), 1), (JobFailed("a bug"), 4),
    ):  # fmt: skip
        attempts.clear()
        monkeypatch.setattr(launcher, "train", lambda *_, error=error: fail(error))
        with pytest.raises(type(error)):
            job.train()
        assert len(attempts) == expected


def test_the_work_folder_of_a_failed_attempt_is_removed_before_the_next_is_filled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each holds the tokens and the state of the job: those of many restarts would fill the disk."""
    folders = list[Path]()

    def prepare(config: Config, folder: str, *_: object) -> Plan:
        assert [path.exists() for path in folders] == [False] * len(folders)
        folders.append(Path(folder))
        assert folders[-1].is_dir()
        return builders.plan()

    monkeypatch.setattr(launcher, "prepare", prepare)
    with contextlib.ExitStack() as resources:
        job = Job(resources)
        for _ in range(3):
            job._prepare(builders.plan().config)
    assert [path.exists() for path in folders] == [False] * 3


def test_the_folder_that_vertex_ai_names_is_that_of_jobs_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_CHECKPOINT_DIR", "gs://lab/out")
    job = Job(contextlib.ExitStack())
    typed = (Config.checkpoints_dir, "mine", None)
    found = [job.config_of(Config(checkpoints_dir=folder).to_mapping()).checkpoints_dir for folder in typed]
    assert found == ["gs://lab/out", "mine", None]


def test_a_job_ends_at_its_next_event_if_another_run_writes_its_checkpoints() -> None:
    job = Job(contextlib.ExitStack())
    job.plan, job._tracker = builders.plan("out"), Mock()
    job._lease = Mock(ensure_held=Mock(side_effect=UserError("a run on far has taken over")))
    with pytest.raises(UserError, match="a run on far has taken over"):
        job._on_event({"event": "round", "round": 3, "metrics": {}})
    job._tracker.event.assert_not_called()
