"""Folders whose paths have any characters, on a disk and over real S3 and Google Cloud Storage servers."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests.conftest import ObjectStore
from tests.line import Line
from tests.test_state_file import HEADER, TENSORS

LETTERS = "/.ab ?#%:[]*~é\\+&=;'@,{}"
paths = st.text(st.sampled_from("//" + LETTERS), max_size=12)


def resumes(url: str, tmp_path: Path) -> bool:
    """Whether what is written to the folder is found there by another process; `False` if the probe refuses it."""
    writer = CheckpointStore(url)
    try:
        writer.probe()
    except UserError:
        return False
    name = writer.save(7, TENSORS, HEADER)
    writer.write_json("lease.json", {"host": "a"})
    staging = tmp_path / "staging"
    staging.mkdir(exist_ok=True)
    (staging / "done.json").write_text("[1]")
    assert writer.publish_folder(staging, "model", last="done.json") == writer.url_of("model")

    reader = CheckpointStore(url)
    assert reader.rounds() == [7]
    found = reader.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert np.array_equal(found[0]["w"], TENSORS["w"])
    assert reader.read_json("lease.json") == {"host": "a"}
    assert reader.read_json("model/done.json") == [1]
    assert reader.sizes("model") == {"done.json": 3}
    if "?" not in url:  # gcsfs renames such files into nowhere
        reader.set_aside(newer_than=6)
        assert reader.rounds() == []
    reader.remove("lease.json")
    assert [file.removesuffix(".damaged") for file in CheckpointStore(url).sizes()] == ["round-000007.safetensors"]
    # The name that users are told leads there, too.
    assert CheckpointStore(name.rpartition("/")[0]).sizes() == reader.sizes()
    return True


def test_any_path_of_a_bucket_is_found_again_or_refused(object_store: ObjectStore, line: Line, tmp_path: Path) -> None:
    numbers = itertools.count()

    @settings(max_examples=12)
    @given(paths)
    @example("/jobs/j")
    @example("jobs//j/")
    @example("a?versionId=3")
    @example("a#5")
    @example("a::b")
    @example("[*]")
    def check(path: str) -> None:
        bucket = f"bucket{next(numbers)}"
        object_store.fs.mkdir(bucket)
        found = resumes(f"{object_store.bucket.partition('://')[0]}://{bucket}/{path}", tmp_path)
        assert found or set(path) & set("?#")

    check()


def test_any_path_on_a_disk_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    @settings(max_examples=30)
    @given(paths)
    @example("a::b")
    @example("a//b/")
    def check(path: str) -> None:
        folder = tmp_path / f"{next(numbers)}" / "x" / "y"  # `..` leads out of a folder
        folder.mkdir(parents=True)
        for url in (f"{folder}/{path}", path.lstrip("/~")):
            monkeypatch.chdir(folder.parent)
            if url and "://" not in url and not list(Path(url).glob("round-*")):
                assert resumes(url, tmp_path)

    check()


def test_slashes_after_the_bucket_make_no_difference(line: Line, tmp_path: Path) -> None:
    bucket = os.environ["TEST_BUCKET"]
    CheckpointStore(f"{bucket}//jobs/j").save(1, TENSORS, HEADER)
    assert CheckpointStore(f"{bucket}//jobs/j").rounds() == [1]


def test_a_folder_whose_listing_lacks_its_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = CheckpointStore(f"memory://{tmp_path}/c")
    monkeypatch.setattr(checkpoints.fs, "ls", lambda path, detail: [])
    with pytest.raises(
        UserError, match=r"checkpoints_dir=memory://.*/c: a file that was written there is not found by"
    ):
        checkpoints.probe()
    monkeypatch.undo()
    assert checkpoints.sizes() == {}, "the probe has removed its file"
