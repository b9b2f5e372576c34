"""Checkpoints are published, found, kept and removed, on a disk and in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore
from tests.test_state_file import HEADER, TENSORS


@pytest.fixture(params=["path", "file://", "memory://"])
def checkpoints(request: Any, tmp_path: Path) -> CheckpointStore:
    prefix = {"path": "", "file://": "file://", "memory://": "memory://"}[request.param]
    return CheckpointStore(f"{prefix}{tmp_path}/a b/c")


def test_the_newest_sound_checkpoint_is_found(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    assert checkpoints.rounds() == []
    assert checkpoints.fetch_newest(tmp_path / "newest") is None
    checkpoints.probe()
    for round_ in (1, 2, 12):
        name = checkpoints.save(round_, {"w": np.array([round_])}, HEADER)
    assert name == f"{checkpoints.url}/round-000012.safetensors"
    for foreign in (
        "round-000099.safetensors.bak", "round-99.safetensors", "xround-000099.safetensors", "notes.txt",
        "round-0000013.safetensors", "round-٠٠٠٠١٤.safetensors", "round-000099.safetensors.damaged", "ROUND-000099.safetensors",
        "model/round-000099.safetensors", "round-000098.safetensors/file",
    ):  # fmt: skip
        checkpoints.fs.makedirs(checkpoints.fs._parent(f"{checkpoints.root}/{foreign}"), exist_ok=True)
        checkpoints.fs.pipe_file(f"{checkpoints.root}/{foreign}", b"?")
    assert checkpoints.rounds() == [12, 2, 1]

    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000012.safetensors", b"cut")
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    tensors, header, damaged = found
    assert (tensors["w"].tolist(), header["round"]) == ([2], 2)
    assert len(damaged) == 1
    assert damaged[0].startswith("round-000012.safetensors is damaged (SafetensorError: ")
    assert checkpoints.rounds() == [12, 2, 1], "nothing is renamed before the job is known to be the same"
    checkpoints.set_aside(newer_than=2)
    assert checkpoints.rounds() == [2, 1]
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/round-000012.safetensors.damaged") == b"cut"


def test_a_folder_without_a_sound_checkpoint_is_not_started_over(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    checkpoints.probe()
    checkpoints.save(3, TENSORS, HEADER)
    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000003.safetensors", b"")
    with pytest.raises(UserError, match=r"found only damaged checkpoints: round-000003\.safetensors is damaged"):
        checkpoints.fetch_newest(tmp_path / "newest")
    assert checkpoints.rounds() == [3]


def test_files_and_folders_are_published(checkpoints: CheckpointStore, tmp_path: Path) -> None:
    checkpoints.probe()
    assert checkpoints.read_json("model/done.json") is None
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "a.bin").write_bytes(b"1")
    (staging / "a.bin").chmod(0o600)  # as safetensors leaves its files
    (staging / "done.json").write_text('{"round": 4}')
    assert checkpoints.publish_folder(staging, "model", last="done.json") == f"{checkpoints.url}/model"
    assert checkpoints.read_json("model/done.json") == {"round": 4}
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/model/a.bin") == b"1"
    if checkpoints.local:
        (tmp_path / "other").write_text("")
        mode = Path(checkpoints.root, "model", "a.bin").stat().st_mode
        assert mode == (tmp_path / "other").stat().st_mode, "the umask applies"
    checkpoints.publish_file(staging / "a.bin", "events.jsonl")
    checkpoints.publish_file(staging / "done.json", "events.jsonl")
    assert checkpoints.read_json("events.jsonl") == {"round": 4}, "a second copy replaces the first"
    assert (staging / "a.bin").exists()


def test_small_files_are_written_read_and_removed(checkpoints: CheckpointStore) -> None:
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


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(3, None, [9, 7, 5]), (1, None, [9]), (2, 4, [9, 7, 4]), (2, 7, [9, 7]), (1, 6, [9]), (0, 4, [9, 7, 5, 4, 2]), (9, 2, [9, 7, 5, 4, 2])],
)  # fmt: skip
def test_the_newest_and_the_best_checkpoints_are_kept(
    checkpoints: CheckpointStore, keep: int, best: int | None, left: list[int]
) -> None:
    checkpoints.probe()
    for round_ in (2, 4, 5, 7, 9):
        checkpoints.save(round_, TENSORS, HEADER)
    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000001.safetensors.damaged", b"")
    assert checkpoints.prune(keep, best) is None
    assert checkpoints.rounds() == left
    assert checkpoints.fs.exists(f"{checkpoints.root}/round-000001.safetensors.damaged"), "only checkpoints are removed"


def test_progress_is_reported_while_a_checkpoint_and_a_model_are_written(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    checkpoints.probe()
    reported: list[str] = []
    checkpoints.save(1, TENSORS, HEADER, on_progress=lambda: reported.append("checkpoint"))
    assert reported
    staging = tmp_path / "staging"
    staging.mkdir()
    for name in ("a", "b", "c"):
        (staging / name).write_text(name)
    checkpoints.publish_folder(staging, "model", last="c", on_progress=lambda: reported.append("model"))
    assert reported.count("model") >= 3


def test_a_checkpoint_under_the_name_of_another_round_counts_as_damaged(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    checkpoints.probe()
    checkpoints.save(3, TENSORS, HEADER)
    checkpoints.fs.cp_file(
        f"{checkpoints.root}/round-000003.safetensors", f"{checkpoints.root}/round-000005.safetensors"
    )
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert found[1]["round"] == 3
    assert found[2] == ["round-000005.safetensors is damaged (it was written as round 3)"]


def test_what_is_no_file_has_no_content(tmp_path: Path) -> None:
    """A folder that somebody made under the name of a file counts as missing, and stays."""
    store = CheckpointStore(str(tmp_path))
    (tmp_path / "events.jsonl").mkdir()
    for name in ("events.jsonl", "nothing.json"):
        assert store.read(name) is None
        assert store.read_json(name) is None
    (tmp_path / "text").write_text("no JSON")
    assert (store.read("text"), store.read_json("text")) == (b"no JSON", None)
    assert store.sizes() == {"text": 7}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_files_are_named_as_a_user_would_type_them(tmp_path: Path, slashes: str) -> None:
    store = CheckpointStore(f"{tmp_path}{slashes}")
    assert store.url == str(tmp_path)
    assert store.url_of("model") == f"{tmp_path}/model"
    store.write_json("a.json", [1])
    assert (tmp_path / "a.json").read_text() == "[1]"


def test_a_checkpoint_that_is_asked_for_and_cannot_be_used_is_named(
    checkpoints: CheckpointStore, tmp_path: Path
) -> None:
    checkpoints.probe()
    for round_ in (3, 5):
        checkpoints.save(round_, TENSORS, HEADER)
    checkpoints.fs.pipe_file(f"{checkpoints.root}/round-000003.safetensors", b"cut")
    name = checkpoints.url_of("round-000003.safetensors")
    with pytest.raises(UserError) as refusal:
        checkpoints.fetch(3, tmp_path / "fetched")
    assert str(refusal.value).startswith(f"{name}: it is damaged (SafetensorError: ")
    assert str(refusal.value).endswith("); restore it, or choose another checkpoint")
    with pytest.raises(UserError, match=r"cannot read round-000004\.safetensors \(FileNotFoundError"):
        checkpoints.fetch(4, tmp_path / "fetched")
    assert checkpoints.fetch(5, tmp_path / "fetched")[1]["round"] == 5


def test_a_listing_shows_what_others_have_written_since(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    store = CheckpointStore(f"{object_store.bucket}/jobs/j")
    store.save(1, TENSORS, HEADER)
    assert store.rounds() == [1]
    object_store.fs.pipe_file(f"{object_store.bucket}/jobs/j/round-000004.safetensors", b"of another process")
    assert store.rounds() == [4, 1]


def test_a_part_of_an_upload_may_take_a_minute() -> None:
    assert CheckpointStore("s3://lab/jobs").fs.config_kwargs["read_timeout"] > 60
