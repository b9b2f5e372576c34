"""A job that is done answers from what it remembers, as long as settings and files are as they were."""

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.runtime import finished
from tests import builders
from tests.conftest import ObjectStore

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SAID = "job j is finished: 2 rounds are done, and the model is in checkpoints/j/model; for more"


def test_data_are_read_again_only_if_files_have_changed(command: Command, tmp_path: Path) -> None:
    words = [*builders.two_sites(tmp_path), "num_rounds=2"]

    def again() -> tuple[bool, str]:
        """Whether the data were read, and what was said."""
        done = command(*words)
        assert done.returncode == 0, done.stderr
        return "reading the data" in done.stdout + done.stderr, " ".join(done.stdout.split())

    assert again()[0]
    read, said = again()
    assert (read, SAID in said) == (False, True)
    assert "run record runs/1" in said
    train = next(Path(word.partition("=")[2]) for word in words if word.startswith("train_path="))
    os.utime(train)
    assert again()[0], "another time"
    assert not again()[0], "what was found out is remembered"
    shutil.rmtree(tmp_path / "checkpoints" / "j" / "model")
    read, said = again()
    assert (read, "finished" in said) == (True, False), "the model is written once more"
    assert not again()[0]
    with open(train, "a") as file:
        file.write("class 0,river\n")
    refused = command(*words)
    assert refused.returncode == 1
    assert "the data have changed since the job started" in refused.stderr


@pytest.fixture
def history(small_config: Config, tmp_path: Path) -> tuple[Path, Config]:
    """The event file of a completed job, and its config."""
    config = small_config.named("j")
    place = tmp_path / "events" / "j.jsonl"
    place.parent.mkdir()
    place.write_text("".join(json.dumps({"time": t, "event": e}) + "\n" for t, e in ((1, "started"), (2, "completed"))))
    (Path(str(config.checkpoints_dir))).mkdir(parents=True)
    (Path(str(config.checkpoints_dir)) / "round-000003.safetensors").write_bytes(b"abc")
    finished.remember(place, config, finished.inputs(config), 3)
    return place, config


def recall(place: Path, config: Config) -> str | None:
    return finished.recall(place, config, finished.inputs(config))


def test_a_changed_setting_or_file_is_noticed(history: tuple[Path, Config], tmp_path: Path) -> None:
    place, config = history
    assert str(recall(place, config)).startswith("job j is finished: 3 rounds are done, and checkpoints are in")
    assert recall(place, dataclasses.replace(config, seed=config.seed + 1)) is None
    checkpoint = Path(str(config.checkpoints_dir)) / "round-000003.safetensors"
    checkpoint.with_name("round-000004.safetensors").write_bytes(b"")
    assert recall(place, config) is None
    checkpoint.with_name("round-000004.safetensors").unlink()
    for path in (checkpoint, Path(str(config.test_path)), Path(config.model) / "config.json"):
        content, times = path.read_bytes(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
        assert recall(place, config) is not None
        path.write_bytes(content + b"\n")
        os.utime(path, ns=times)
        assert recall(place, config) is None, "another size"
        path.write_bytes(content)
        os.utime(path, ns=times)
    for path in (place.with_suffix(".finished.json"), Path(str(config.train_path))):
        assert recall(place, config) is not None
        path.rename(tmp_path / "away")
        assert recall(place, config) is None
        (tmp_path / "away").rename(path)


def test_data_that_change_while_the_job_runs_are_not_those_that_it_has_read(history: tuple[Path, Config]) -> None:
    place, config = history
    before = finished.inputs(config)
    with open(str(config.train_path), "a") as file:
        file.write("class 0,river\n")
    finished.remember(place, config, before, 3)
    assert recall(place, config) is None


def test_folders_are_found_by_url_and_behind_links(history: tuple[Path, Config], tmp_path: Path) -> None:
    place, config = history
    (tmp_path / "saved").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "saved" / "train").symlink_to(tmp_path / "elsewhere")
    data = tmp_path / "elsewhere" / "data.arrow"
    data.write_bytes(b"a")
    config = dataclasses.replace(
        config, checkpoints_dir=f"file://{config.checkpoints_dir}", dataset=str(tmp_path / "saved")
    )
    checkpoint = Path(config.checkpoints_dir.removeprefix("file://")) / "round-000003.safetensors"
    for path in (data, checkpoint):
        finished.remember(place, config, finished.inputs(config), 3)
        assert recall(place, config) is not None
        path.write_bytes(b"another size")
        assert recall(place, config) is None, path


def test_a_run_that_was_begun_again_is_not_done(history: tuple[Path, Config]) -> None:
    place, config = history
    with open(place, "a") as file:
        file.write(json.dumps({"time": 3, "event": "started"}) + "\n")
    assert recall(place, config) is None


def test_what_other_machines_have_is_never_remembered(
    history: tuple[Path, Config], object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, config = history
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    for changed in (
        dataclasses.replace(config, checkpoints_dir=f"{object_store.bucket}/j"),
        dataclasses.replace(config, train_path=f"{object_store.bucket}/train.csv"),
        dataclasses.replace(config, checkpoints_dir=None),
        dataclasses.replace(config, dataset="someone/something"),
    ):
        place.with_suffix(".finished.json").unlink(missing_ok=True)
        finished.remember(place, changed, finished.inputs(changed), 3)
        assert not place.with_suffix(".finished.json").exists()
    of_hub = dataclasses.replace(config, model="someone/something")
    finished.remember(place, of_hub, finished.inputs(of_hub), 3)
    assert place.with_suffix(".finished.json").exists(), "its weights have no part in what is said"


def test_what_another_version_has_found_out_is_found_out_again(
    history: tuple[Path, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recall(*history) is not None
    monkeypatch.setattr("scaling_fl.__version__", "99.0")
    assert recall(*history) is None
