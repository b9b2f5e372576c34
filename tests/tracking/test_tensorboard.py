"""TensorBoard's own reader finds every metric of a job."""

import contextlib
import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaling_fl.checkpoint.storage import Storage
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.runtime.job import Job
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.replay import Replay
from scaling_fl.tracking.tensorboard import TensorBoardLog
from tests import builders as models
from tests.conftest import ObjectStore
from tests.tracking import builders

FILE = "events.out.tfevents.0.scaling_fl"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars that the reader finds, as (step, value)."""
    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def replay(log: EventLog, folder: object) -> Replay:
    found = Replay(log.path, TensorBoardLog(str(folder), "news"))
    found.step()
    assert found.trouble is None, found.describe_trouble()
    return found


def test_every_metric_is_a_scalar_and_the_configuration_a_text(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    found = replay(log, tmp_path / "boards")
    assert found.target.location() == str(tmp_path / "boards" / "news")
    assert scalars(tmp_path / "boards" / "news") == {
        "train/loss": [(1, 0.5), (2, 0.25)], "only/in.1": [(1, 1.5)], "only/in.2": [(2, 1.5)],
        "seconds/checkpoint": [(1, 0.25)],
    }  # fmt: skip
    reader = EventAccumulator(str(tmp_path / "boards" / "news"))
    reader.Reload()
    (text,) = reader.Tensors("configuration")
    assert b"| num_rounds | 4 |" in text.tensor_proto.string_val[0]


def test_the_file_grows_at_its_end_and_a_resume_discards_the_rounds_that_are_run_again(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    found = replay(log, tmp_path)
    before = (tmp_path / "news" / FILE).read_bytes()
    reader = EventAccumulator(str(tmp_path / "news"))
    reader.Reload()
    builders.start(log, after_round=1)
    builders.round_(log, 2, 0.125)
    builders.round_(log, 3, "nan")
    found.step()
    assert (tmp_path / "news" / FILE).read_bytes().startswith(before)
    steps = scalars(tmp_path / "news")["train/loss"]
    assert steps[:2] == [(1, 0.5), (2, 0.125)]
    assert steps[2][0] == 3
    assert steps[2][1] != steps[2][1], "NaN"
    reader.Reload()  # as TensorBoard does while it runs
    assert [(point.step, point.value) for point in reader.Scalars("train/loss")][:2] == steps[:2]


def test_a_job_that_starts_over_has_none_of_its_earlier_points(tmp_path: Path) -> None:
    """Not even that of round 0, which it evaluates again."""
    log = EventLog(tmp_path / "news.jsonl")
    builders.start(log)
    for number in (0, 1):
        builders.round_(log, number, 0.5)
    builders.start(log)
    builders.round_(log, 0, 0.25)
    replay(log, tmp_path)
    assert {tag: points for tag, points in scalars(tmp_path / "news").items() if points} == {
        "train/loss": [(0, 0.25)],
        "only/in.0": [(0, 1.5)],
    }


def test_a_replay_from_the_start_writes_the_same_file(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    replay(log, tmp_path)
    first = (tmp_path / "news" / FILE).read_bytes()
    replay(log, tmp_path)  # after an outage, or on another machine
    assert (tmp_path / "news" / FILE).read_bytes() == first


def test_an_object_store_holds_the_same_file(
    tmp_path: Path, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    log = builders.job(tmp_path)
    replay(log, tmp_path)
    url = f"{object_store.bucket}/boards"
    TensorBoardLog(url, "news").check()
    replay(log, url)
    assert Storage(f"{url}/news").read(FILE) == (tmp_path / "news" / FILE).read_bytes()


def test_a_missing_package_and_a_folder_that_is_a_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TensorBoardLog(str(tmp_path / "new" / "folder"), "news").check()
    assert list(tmp_path.iterdir()) == [], "no trace"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/news: cannot write to it \(.*\); choose another tensorboard_dir$"):
        TensorBoardLog(str(tmp_path / "file"), "news").check()
    with pytest.raises(UserError, match=r"^tensorboard_dir='none://x/news': .*; give a folder, s3://… or gs://…$"):
        TensorBoardLog("none://x", "news")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^tensorboard_dir: the package tensorboard isn't installed; install it with"):
        TensorBoardLog(str(tmp_path), "news").check()


def test_vertex_ai_names_a_folder_for_every_job_with_and_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_TENSORBOARD_LOG_DIR", "gs://lab/logs")
    with contextlib.ExitStack() as resources:
        job = Job(resources)
        assert job.config_of(Config().to_mapping()).tensorboard_dir == "gs://lab/logs"
        typed = Config(tensorboard_dir="mine").to_mapping()
        assert job.config_of(typed).tensorboard_dir == "mine"
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        assert job.config_of(Config().to_mapping()).tensorboard_dir is None


def test_a_job_and_its_resume_are_one_run_in_tensorboard(
    command: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    models.write_csv(tmp_path / "train.csv", 20)
    models.write_csv(tmp_path / "t.csv", 9, 1)
    words: list[Any] = [
        "with", "site_ids=[-1,-1]", "threads_per_site=1", "task_name=csv", "train_path=train.csv", "test_path=t.csv",
        "text_column=body", "label_column=topic", "model=tiny", "max_seq_len=16", "job_name=news",
    ]  # fmt: skip
    for rounds in (1, 2):
        done = command(*words, f"num_rounds={rounds}", AIP_TENSORBOARD_LOG_DIR="boards")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "tensorboard_dir=boards, from AIP_TENSORBOARD_LOG_DIR" in done.stdout
        assert "TensorBoard  boards/news" in done.stdout
    found = scalars(tmp_path / "boards" / "news")
    assert [step for step, _ in found["validation/accuracy"]] == [0, 1, 2]
    assert [step for step, _ in found["site/1.train.loss"]] == [1, 2]
