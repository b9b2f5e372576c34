"""Writes that fail, on a disk that is full, refuses or loses power: one clear message, and earlier files stay intact."""

import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests.test_state_file import HEADER, TENSORS


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_earlier_checkpoints_intact(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = CheckpointStore(str(tmp_path / "c"))
    checkpoints.probe()
    checkpoints.save(1, TENSORS, HEADER)

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"cannot write round-000002\.safetensors \(OSError: .*No space left"):
        checkpoints.save(2, TENSORS, HEADER)
    monkeypatch.undo()
    assert names(tmp_path / "c") == ["round-000001.safetensors"]


@pytest.mark.parametrize("what", ["checkpoint", "model"])
def test_a_full_disk_is_one_clear_error_and_leaves_earlier_files_intact(tmp_path: Path, what: str) -> None:
    """The system itself refuses, by a limit on the size of files."""
    checkpoints = CheckpointStore(str(tmp_path / "c"))
    checkpoints.probe()
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "weights").write_bytes(b"good" * 100)
    (staging / "done").write_text("1")
    checkpoints.save(1, TENSORS, HEADER)
    checkpoints.publish_folder(staging, "model", last="done")
    large = np.ones(100_000, np.float32)  # 400 kB
    (staging / "weights").write_bytes(large.tobytes())
    write = {
        "checkpoint": lambda: checkpoints.save(2, {"w": large}, HEADER),
        "model": lambda: checkpoints.publish_folder(staging, "model", last="done"),
    }[what]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"checkpoints_dir=.*/c: cannot write .* \(.*File too large.*free space"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "c") == ["model", "round-000001.safetensors"]
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert np.array_equal(found[0]["w"], TENSORS["w"])
    assert checkpoints.read_json("model/done") == (1 if what == "checkpoint" else None), (
        "an incomplete model doesn't count as one"
    )
    assert (tmp_path / "c" / "model" / "weights").read_bytes() == b"good" * 100, "no reader sees half a file"


def test_a_checkpoint_that_cannot_be_removed_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointStore(str(tmp_path / "c"))
    checkpoints.probe()
    for round_ in (1, 2):
        checkpoints.save(round_, TENSORS, HEADER)
    monkeypatch.setattr(checkpoints.fs, "rm_file", refuse)  # root may remove anything
    trouble = checkpoints.prune(1, None)
    assert (
        trouble
        == f"checkpoints_dir={tmp_path}/c: cannot remove old checkpoints (PermissionError: [Errno 1] no); check the permissions"
    )
    assert checkpoints.rounds() == [2, 1]


def refuse(*_: Any) -> None:
    raise PermissionError(1, "no")


def test_the_probe_removes_leftovers_of_killed_runs(tmp_path: Path) -> None:
    left = tmp_path / "c" / ".partial-xyz"
    left.mkdir(parents=True)
    (left / "round-000009.safetensors").write_bytes(b"half")
    checkpoints = CheckpointStore(str(tmp_path / "c"))
    assert checkpoints.rounds() == []
    checkpoints.probe()
    assert names(tmp_path / "c") == []


def test_an_unwritable_folder_is_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoints_dir=.*file/c: cannot write to it \(NotADirectoryError"):
        CheckpointStore(str(tmp_path / "file" / "c")).probe()
    with pytest.raises(UserError, match="checkpoints_dir='nope://x'"):
        CheckpointStore("nope://x")


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"checkpoints_dir=s3://lab/x: cannot read it \(NoCredentialsError"):
        CheckpointStore("s3://lab/x").fetch_newest(tmp_path / "newest")


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_the_name_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave an empty checkpoint under its final name."""
    checkpoints, calls = CheckpointStore(str(tmp_path / "c")), list[str]()
    checkpoints.probe()
    replace, fsync = os.replace, os.fsync

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append(f"named {Path(target).name}")
        replace(source, target)

    def recorded_fsync(descriptor: int) -> None:
        calls.append(f"synced {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", recorded_replace)
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    checkpoints.save(2, TENSORS, HEADER)
    name = "round-000002.safetensors"
    assert calls == [f"synced {name}", f"named {name}", "synced c"]
