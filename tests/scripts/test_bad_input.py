"""Invalid input of every kind: one message with the thing and the remedy; nothing written; no site started.

Each row of the tables spoils one thing in a valid job or its folder. Most jobs are prepared in this process, without
sites, as in the preparation child; the others are run from the command line.
"""

import contextlib
import pickle
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch

from scaling_fl import host
from scaling_fl.checkpoint import store
from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime.preparation import prepare
from tests import builders
from tests.scripts.bad_input.checkpoints import CHECKPOINTS
from tests.scripts.bad_input.data import DATA
from tests.scripts.bad_input.keys import KEYS
from tests.scripts.bad_input.models import MODELS
from tests.scripts.bad_input.row import OUT, SOUND, Hostile, Row, put, table
from tests.scripts.bad_input.typed import TYPED


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The valid job's folder, created once."""
    folder = tmp_path_factory.mktemp("sound")
    builders.write_csv(folder / "train.csv", 41)
    builders.write_csv(folder / "test.csv", 9, 1)
    builders.pretrained(folder / "model")
    work = tmp_path_factory.mktemp("work")
    with contextlib.chdir(folder):
        plan = prepared(work, {})
        checkpoints = store.CheckpointStore("out")
        checkpoints.probe()
        checkpoints.save(1, store.read_state(work / "state.safetensors")[0], checkpoint_header(plan, {}, None))
    return folder


@pytest.fixture(autouse=True)
def home(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the valid job's folder, as the working directory."""
    shutil.copytree(sound, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def prepared(work: Path, keys: Mapping[str, Any]) -> Plan:
    events: list[dict[str, Any]] = []
    prepare(Mock(side_effect=events.append), Config.from_mapping(SOUND | dict(keys)), str(work))
    plan = events[-1]["plan"]
    assert isinstance(plan, Plan)
    return plan


def content(folder: Path) -> dict[str, Any]:
    """Everything in a folder, for a comparison before and after."""
    return {
        str(path): path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else path.is_dir()
        for path in folder.rglob("*")
    }


@table(*KEYS, *DATA, *MODELS, *CHECKPOINTS)
def test_invalid_input_is_refused_before_any_site_starts(
    row: Row, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    row.spoil()
    before = content(home)
    with pytest.raises(UserError) as refusal:
        prepared(tmp_path_factory.mktemp("work"), row.keys)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 1000
    for part in row.says:
        assert part in message
    assert content(home) == before, "nothing was written"


@pytest.mark.parametrize("wanted", [[0, 2], [7, 7]])
def test_an_unknown_gpu_is_refused(
    wanted: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = rf"site_ids=.*: there is no GPU {wanted[1]}; this machine has GPUs 0 to 1; correct site_ids"
    with pytest.raises(UserError, match=message):
        prepared(tmp_path_factory.mktemp("work"), {"site_ids": wanted})


def test_damaged_files_that_can_be_rebuilt_or_replaced_do_not_end_the_job(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def notes(keys: dict[str, Any]) -> str:
        return "\n".join(prepared(tmp_path_factory.mktemp("work"), keys).notes)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert "damaged" not in notes({})
    for entry in (host.cache_folder() / "tokens").glob("*/seal.json"):
        entry.write_text("[" * 100_000)
    assert notes({}).count("are damaged; they were rebuilt") == 2, "training and test tokens"
    assert "damaged" not in notes({})

    put("out/round-000002.safetensors", pickle.dumps(Hostile(), 2))()
    assert "round-000002.safetensors is damaged (" in notes(OUT)
    assert Path("out/round-000002.safetensors.damaged").exists()

    Path("out/model").mkdir()
    for mark in ("{", "[]", '{"round": 1}', '{"round": 1, "files": 3}', '{"round": 1, "files": {"config.json": 7}}'):
        put("out/model/scaling_fl.json", mark)()
        plan = prepared(tmp_path_factory.mktemp("work"), {**OUT, "num_rounds": 1})
        assert (plan.round, plan.finished) == (1, False), "the model is written once more"
    assert not Path("owned").exists()


Command = Callable[..., "subprocess.CompletedProcess[str]"]


def arguments(keys: Mapping[str, Any]) -> list[str]:
    """The command's arguments: the valid job's keys, changed by `keys`. Names with the value None are flags."""
    words = [
        name if value is None else f"{name}={value}".replace(", ", ",") for name, value in (SOUND | dict(keys)).items()
    ]
    return [word for word in words if word.startswith("-")] + ["with"] + [w for w in words if not w.startswith("-")]


@table(*TYPED)
def test_invalid_input_on_the_command_line_gives_one_line_and_writes_nothing(
    row: Row, command: Command, home: Path
) -> None:
    row.spoil()
    before = content(home)
    done = command(*arguments(row.keys))
    assert done.returncode == 1
    assert done.stderr.startswith("Refused: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    for part in row.says:
        assert part in done.stderr
    assert "sites on cpu" not in done.stdout
    assert content(home) == before, "nothing was written"


def test_debug_shows_the_stack_trace(command: Command) -> None:
    done = command("--debug", *arguments({"train_path": "no.csv"}), cold=True)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "train_path='no.csv': there is no such file" in done.stderr.splitlines()[-1]


def test_sources_that_are_not_committed_are_refused_before_the_data_are_read(command: Command, home: Path) -> None:
    before = content(home)
    done = command("-e", *arguments({}), cold=True, GIT_PYTHON_GIT_EXECUTABLE="/none")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "Refused: -e: expected sources that are committed, found no git repository with a commit"
    )
    assert done.stderr.count("\n") == 1
    assert "reading" not in done.stdout
    assert content(home) == before
