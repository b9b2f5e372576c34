import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling_fl import checkpoint
from scaling_fl.checkpoint import Checkpoints, Damaged, read_state, read_tensors, write_state
from scaling_fl.errors import UserError

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7), "b": np.array([0.1], np.float32)}
HEADER = {"round": 3, "config": {"learning_rate": 5e-5, "site_ids": [0, 1]}, "metrics": {"loss": 0.1 + 0.2}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_bitwise_with_its_header(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    tensors, header = read_state(tmp_path / "state")
    assert header == HEADER | {"format_version": 1}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert np.array_equal(tensors[name], tensor)
    some = sorted(TENSORS)[:1]
    assert read_tensors(tmp_path / "state", some).keys() == set(some)
    assert np.array_equal(read_tensors(tmp_path / "state", some)[some[0]], TENSORS[some[0]])


def test_a_state_file_is_readable_by_those_whom_the_umask_lets(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    (tmp_path / "other").write_text("")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_state_file_is_plain_safetensors(tmp_path: Path) -> None:
    write_state(tmp_path / "state", TENSORS, HEADER)
    assert np.array_equal(safetensors.numpy.load_file(tmp_path / "state")["w"], TENSORS["w"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "state"
    write_state(path, TENSORS, HEADER)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        tensors, header = read_state(path)
    except Damaged:
        return
    # Safetensors pads its JSON with blanks, and white space in JSON means nothing.
    assert header == HEADER | {"format_version": 1}
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_state_of_a_future_version_or_of_something_else_is_no_state(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    write_state(tmp_path / "future", TENSORS, HEADER)
    monkeypatch.undo()
    with pytest.raises(Damaged, match="format version 2; this program reads version 1"):
        read_state(tmp_path / "future")
    safetensors.numpy.save_file(TENSORS, tmp_path / "foreign")
    with pytest.raises(Damaged):
        read_state(tmp_path / "foreign")
    (tmp_path / "pickle").write_bytes(b"\x80\x04cposix\nsystem\n")
    with pytest.raises(Damaged):
        read_state(tmp_path / "pickle")
    header = json.dumps({"__metadata__": {"scaling_fl": "[1]"}}).encode()
    (tmp_path / "list").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(Damaged):
        read_state(tmp_path / "list")


@pytest.fixture(params=["path", "file://", "memory://"])
def checkpoints(request: Any, tmp_path: Path) -> Checkpoints:
    prefix = {"path": "", "file://": "file://", "memory://": "memory://"}[request.param]
    return Checkpoints(f"{prefix}{tmp_path}/a b/c")


def test_the_newest_sound_checkpoint_is_found(checkpoints: Checkpoints) -> None:
    assert checkpoints.rounds() == []
    assert checkpoints.newest() is None
    checkpoints.probe()
    for round_ in (1, 2, 12):
        name = checkpoints.save(round_, {"w": np.array([round_])}, HEADER)
    assert name == f"{checkpoints.url}/round-000012.safetensors"
    for foreign in ("round-000099.safetensors.bak", "round-99.safetensors", "xround-000099.safetensors", "notes.txt"):
        checkpoints.fs.pipe_file(f"{checkpoints.root}/{foreign}", b"?")
    checkpoints.fs.makedirs(f"{checkpoints.root}/model", exist_ok=True)
    assert checkpoints.rounds() == [12, 2, 1]

    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000012.safetensors", b"cut")
    found = checkpoints.newest()
    assert found is not None
    tensors, header, damaged = found
    assert (tensors["w"].tolist(), header["round"]) == ([2], 2)
    assert len(damaged) == 1
    assert damaged[0].startswith("round-000012.safetensors is damaged (SafetensorError: ")
    assert checkpoints.rounds() == [12, 2, 1], "nothing is renamed before the job is known to be this one"
    checkpoints.set_aside(before=2)
    assert checkpoints.rounds() == [2, 1]
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/round-000012.safetensors.damaged") == b"cut"


def test_checkpoints_of_which_none_is_sound_are_not_started_over(checkpoints: Checkpoints) -> None:
    checkpoints.probe()
    checkpoints.save(3, TENSORS, HEADER)
    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000003.safetensors", b"")
    with pytest.raises(UserError, match=r"no checkpoint in it is sound: round-000003\.safetensors is damaged"):
        checkpoints.newest()
    assert checkpoints.rounds() == [3]


def test_files_and_folders_are_published(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.probe()
    assert checkpoints.read_json("model/done.json") is None
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "a.bin").write_bytes(b"1")
    (staging / "done.json").write_text('{"round": 4}')
    assert checkpoints.put_folder(staging, "model", last="done.json") == f"{checkpoints.url}/model"
    assert checkpoints.read_json("model/done.json") == {"round": 4}
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/model/a.bin") == b"1"
    checkpoints.put_file(staging / "a.bin", "events.jsonl")
    checkpoints.put_file(staging / "done.json", "events.jsonl")
    assert checkpoints.read_json("events.jsonl") == {"round": 4}, "a second copy replaces the first"
    assert (staging / "a.bin").exists()


def test_small_files_are_written_read_and_removed(checkpoints: Checkpoints) -> None:
    checkpoints.probe()
    assert checkpoints.read("lease.json") is None
    checkpoints.remove("lease.json")
    for value in ({"host": "a"}, {"host": "b"}):
        checkpoints.write_json("lease.json", value)
        assert checkpoints.read_json("lease.json") == value
    assert checkpoints.read("lease.json") == b'{"host": "b"}'
    assert checkpoints.rounds() == []
    checkpoints.remove("lease.json")
    assert checkpoints.read("lease.json") is None


def test_a_write_that_breaks_off_leaves_what_was_there(tmp_path: Path, monkeypatch: Any) -> None:
    checkpoints = Checkpoints(str(tmp_path / "c"))
    checkpoints.probe()
    checkpoints.save(1, TENSORS, HEADER)

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match=r"round-000002\.safetensors can't be written \(OSError: .*No space left"):
        checkpoints.save(2, TENSORS, HEADER)
    monkeypatch.undo()
    assert names(tmp_path / "c") == ["round-000001.safetensors"]


def test_the_probe_clears_away_what_a_killed_run_left(tmp_path: Path) -> None:
    left = tmp_path / "c" / ".partial-xyz"
    left.mkdir(parents=True)
    (left / "round-000009.safetensors").write_bytes(b"half")
    checkpoints = Checkpoints(str(tmp_path / "c"))
    assert checkpoints.rounds() == []
    checkpoints.probe()
    assert names(tmp_path / "c") == []


def test_a_place_that_can_not_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoints_dir=.*file/c: it can't be written to \(NotADirectoryError"):
        Checkpoints(str(tmp_path / "file" / "c")).probe()
    with pytest.raises(UserError, match="checkpoints_dir='nope://x'"):
        Checkpoints("nope://x")


def test_missing_credentials_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"checkpoints_dir=s3://lab/x: it can't be read \(NoCredentialsError"):
        Checkpoints("s3://lab/x").newest()
