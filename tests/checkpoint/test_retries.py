"""Checkpoints in object stores that fail, are busy, refuse or vanish; over HTTP, through a line that can be cut."""

import json
import os
import types
from collections.abc import Callable
from pathlib import Path

import google.auth.exceptions
import numpy as np
import pytest

from scaling_fl import state_file
from scaling_fl.checkpoint import retries
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from tests.checkpoint.writer import state
from tests.conftest import ObjectStore
from tests.line import Line
from tests.test_state_file import HEADER, TENSORS


@pytest.fixture
def waits(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record the waits between attempts instead of sleeping. gcsfs's own waits are skipped, too."""
    seconds_waited: list[float] = []
    monkeypatch.setattr(retries, "time", types.SimpleNamespace(sleep=seconds_waited.append))

    async def no_sleep(seconds: float) -> None:
        pass

    if "gs" in object_store.fs.protocol:
        import gcsfs.retry

        monkeypatch.setattr(gcsfs.retry, "asyncio", types.SimpleNamespace(sleep=no_sleep))
    return seconds_waited


@pytest.fixture
def checkpoints(line: Line) -> CheckpointStore:
    """In an object store, with one checkpoint."""
    opened = CheckpointStore(os.environ["TEST_BUCKET"] + "/jobs/j")
    opened.fs.retries = 1  # s3fs's own retries take seconds
    opened.probe()
    opened.save(1, TENSORS, HEADER)
    return opened


def answer(line: Line, checkpoints: CheckpointStore, status: int, code: str) -> Callable[[str], bytes | None]:
    """Answer every write with this status, in the store's format."""
    if "s3" in checkpoints.fs.protocol:
        body = f"<Error><Code>{code}</Code><Message>the store says {code}</Message></Error>"
    else:
        body = json.dumps({"error": {"code": status, "message": f"the store says {code}"}})
    head = (
        f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    )
    return lambda method: (head + body).encode() if method in ("PUT", "POST", "DELETE") else None


@pytest.mark.parametrize("attempts", [1, 3])
def test_an_outage_is_retried(
    checkpoints: CheckpointStore,
    line: Line,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    attempts: int,
    tmp_path: Path,
) -> None:
    line.down = True

    def nap(seconds: float) -> None:
        waits.append(seconds)
        line.down = len(waits) < attempts

    monkeypatch.setattr(retries.time, "sleep", nap)
    progress: list[int] = []
    checkpoints.save(2, state(2), HEADER, on_progress=lambda: progress.append(len(waits)))
    assert tuple(waits) == retries.DELAYS[:attempts]
    assert set(range(attempts + 1)) <= set(progress), "waiting counts as progress"
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert found[1]["round"] == 2
    assert np.array_equal(found[0]["w"], state(2)["w"])


def test_an_interrupted_upload_is_retried(
    checkpoints: CheckpointStore, line: Line, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line.cut_after(500_000, lambda: None)

    def nap(seconds: float) -> None:
        waits.append(seconds)
        line.down = False
        assert checkpoints.rounds() == [1], "the partial upload is invisible"

    monkeypatch.setattr(retries.time, "sleep", nap)
    checkpoints.save(2, state(2), HEADER)
    assert tuple(waits) == retries.DELAYS[:1]
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert np.array_equal(found[0]["w"], state(2)["w"])


def test_the_upload_of_a_model_is_retried_as_well(
    checkpoints: CheckpointStore, line: Line, waits: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(state(1)["w"].tobytes())
    (folder / "done").write_text("7")
    line.cut_after(500_000, lambda: None)

    def nap(seconds: float) -> None:
        waits.append(seconds)
        line.down = False
        assert checkpoints.read_json("model/done") is None

    monkeypatch.setattr(retries.time, "sleep", nap)
    checkpoints.publish_folder(folder, "model", last="done")
    assert tuple(waits) == retries.DELAYS[:1]
    assert checkpoints.read_json("model/done") == 7
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/model/weights") == state(1)["w"].tobytes()


def test_a_permanent_outage_is_one_error_and_leaves_earlier_checkpoints_intact(
    checkpoints: CheckpointStore, line: Line, waits: list[float], tmp_path: Path
) -> None:
    line.down = True
    with pytest.raises(UserError, match=r"checkpoints_dir=.*/jobs/j: cannot write round-000002\.safetensors \("):
        checkpoints.save(2, TENSORS, HEADER)
    assert tuple(waits) == retries.DELAYS
    line.down = False
    assert checkpoints.rounds() == [1]
    assert checkpoints.fetch_newest(tmp_path / "newest") is not None


@pytest.mark.parametrize(
    ("status", "code", "retried"),
    [
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (502, "BadGateway", True),
        (429, "TooManyRequests", True),
        (403, "AccessDenied", False),
        (404, "NoSuchBucket", False),
        (401, "Invalid Credentials", False),
        (400, "ExpiredToken", False),
    ],
)
def test_a_busy_store_is_retried_and_a_refusal_is_not(
    checkpoints: CheckpointStore, line: Line, waits: list[float], status: int, code: str, retried: bool
) -> None:
    line.answer = answer(line, checkpoints, status, code)
    with pytest.raises(UserError, match=r"cannot write round-000002\.safetensors \(") as error:
        checkpoints.save(2, TENSORS, HEADER)
    assert tuple(waits) == (retries.DELAYS if retried else ())
    assert "check the path or URL, free space, permissions and credentials" in str(error.value)
    if code in ("AccessDenied", "ExpiredToken"):
        assert f"the store says {code}" in str(error.value)
    line.answer = lambda method: None
    assert checkpoints.rounds() == [1]


def test_a_missing_bucket_is_reported_at_once(
    checkpoints: CheckpointStore, object_store: ObjectStore, waits: list[float]
) -> None:
    checkpoints.fs.rm(checkpoints.root, recursive=True)
    object_store.fs.rmdir(object_store.bucket.partition("://")[2])
    with pytest.raises(UserError, match=r"cannot write round-000002\.safetensors \(FileNotFoundError"):
        checkpoints.save(2, TENSORS, HEADER)
    assert waits == []


def test_a_checkpoint_that_may_not_be_removed_is_reported_and_stays(
    checkpoints: CheckpointStore, line: Line, waits: list[float]
) -> None:
    checkpoints.save(2, TENSORS, HEADER)
    line.answer = answer(line, checkpoints, 403, "AccessDenied")
    trouble = checkpoints.prune(1, None)
    assert trouble is not None
    assert trouble.startswith(f"checkpoints_dir={checkpoints.url}: cannot remove old checkpoints (")
    line.answer = lambda method: None
    assert checkpoints.rounds() == [2, 1]
    assert checkpoints.prune(1, None) is None
    assert checkpoints.rounds() == [2]


def test_damaged_files_in_a_store_are_skipped_and_set_aside(
    checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as future:
        future.setattr(state_file, "FORMAT_VERSION", 3)
        checkpoints.save(2, TENSORS, HEADER)
    for round_ in (3, 4):
        checkpoints.save(round_, TENSORS, HEADER)
    whole = checkpoints.fs.cat_file(f"{checkpoints.root}/round-000003.safetensors")
    flipped = whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:]
    for round_, content in ((3, flipped), (4, whole[: len(whole) // 2]), (5, b"")):
        checkpoints.fs.pipe_file(f"{checkpoints.root}/round-00000{round_}.safetensors", content)
    found = checkpoints.fetch_newest(tmp_path / "newest")
    assert found is not None
    assert found[1]["round"] == 1
    for text, round_, reason in zip(found[2], "5432", ("", "", "checksum", "format version 3"), strict=True):
        assert text.startswith(f"round-00000{round_}.safetensors is damaged (")
        assert reason in text
    assert checkpoints.rounds() == [5, 4, 3, 2, 1]
    checkpoints.set_aside(newer_than=1)
    assert checkpoints.rounds() == [1]
    assert checkpoints.fs.cat_file(f"{checkpoints.root}/round-000003.safetensors.damaged") == flipped


def test_a_transient_error_is_retried_after_longer_and_longer_waits_which_count_as_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[object] = []
    monkeypatch.setattr(retries, "time", types.SimpleNamespace(sleep=told.append))
    errors: list[Exception] = []

    def work() -> None:
        told.append("work")
        if errors:
            raise errors.pop(0)

    def attempt(*raised: Exception) -> list[object]:
        told.clear()
        errors[:] = raised
        retries.retry(work, types.SimpleNamespace(protocol=("s3", "s3a")), lambda: told.append("alive"))
        return told

    assert attempt() == ["work"]
    assert attempt(ConnectionError(), TimeoutError()) == ["work", "alive", 2.0, "work", "alive", 8.0, "work"]
    with pytest.raises(PermissionError):
        attempt(ConnectionError(), PermissionError())
    assert told == ["work", "alive", 2.0, "work"]
    with pytest.raises(ConnectionError, match="the fifth"):
        attempt(*(ConnectionError("the fifth" if number == 4 else "") for number in range(5)))
    assert [wait for wait in told if isinstance(wait, float)] == [2.0, 8.0, 30.0, 60.0]


@pytest.mark.parametrize(
    ("protocol", "status", "transient"),
    [
        ("s3", 429, True),
        ("s3", 499, False),
        ("s3", 500, True),
        ("s3", 503, True),
        ("s3", 403, False),
        ("s3", 404, False),
    ],
)
def test_the_stores_own_faults_are_transient(protocol: str, status: int, transient: bool) -> None:
    """s3fs keeps botocore's error, which has the status, as the cause of its own."""
    error, cause = OSError("translated"), Exception("botocore's")
    cause.response = {"ResponseMetadata": {"HTTPStatusCode": status}}  # type: ignore[attr-defined]
    error.__cause__ = cause
    assert retries.is_transient(error, types.SimpleNamespace(protocol=(protocol,))) == transient
    assert not retries.is_transient(error, types.SimpleNamespace(protocol=("file", "local"))), "a disk's are permanent"


def test_refused_credentials_of_google_are_asked_for_again_only_if_their_issuer_says_so() -> None:
    gcs = types.SimpleNamespace(protocol=("gs", "gcs"))
    for retryable in (True, False):
        error = google.auth.exceptions.RefreshError("no token", retryable=retryable)
        assert retries.is_transient(error, gcs) == retryable
    assert retries.is_transient(ConnectionResetError(), gcs)
    assert not retries.is_transient(PermissionError(), gcs)
