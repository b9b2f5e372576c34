"""The command when the storage of its checkpoints fills up or disappears in mid-run."""

import contextlib
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.state_file import read_state
from tests import builders, zygote
from tests.conftest import SCRIPT, ObjectStore, clean_environment

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments for two sites with a local model of a few thousand parameters."""
    return [*builders.two_sites(tmp_path), "keep_checkpoints=0"]


def test_a_full_disk_ends_the_job_and_more_space_lets_it_resume(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    words.append("model=tiny")  # three states and the event file must fit, but not nine
    first = command(*words, "num_rounds=1", "checkpoints_dir=one", "job_name=one")
    assert first.returncode == 0, first.stderr
    size, events = ((tmp_path / "one" / name).stat().st_size for name in ("round-000001.safetensors", "events.jsonl"))
    assert events < 2 * size
    # A small file system in a mount namespace. It disappears with the namespace, so its content is copied out first.
    argv = shlex.join(
        [sys.executable, str(SCRIPT), *zygote.last_values([*words, "num_rounds=9", "checkpoints_dir=small"])]
    )
    script = (
        f"mkdir small left && mount -t tmpfs -o size={3 * size + size // 2 + 2 * events} none small || exit 77; "
        f"{argv}; status=$?; cp -r small/. left; exit $status"
    )
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip("this machine doesn't allow mounts in user namespaces")
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "checkpoints_dir=small: cannot write round-00000" in last
    assert ".safetensors (" in last
    assert "No space left on device" in last
    rounds = CheckpointStore(str(tmp_path / "left")).rounds()
    assert rounds
    assert rounds == list(range(rounds[0], 0, -1))
    for round_ in rounds:
        assert read_state(tmp_path / "left" / f"round-{round_:06d}.safetensors")[1]["round"] == round_
    resumed = command(*words, "num_rounds=9", "checkpoints_dir=left")
    assert resumed.returncode == 0, resumed.stderr
    assert f"job j resumes after round {rounds[0]}" in resumed.stdout


def test_a_bucket_that_is_deleted_in_mid_run_ends_the_job_with_one_clear_message(
    words: list[str], tmp_path: Path, object_store: ObjectStore
) -> None:
    bucket, environ, fs = object_store
    process = zygote.popen(
        *words, "num_rounds=99999", "checkpoint_every=20", f"checkpoints_dir={bucket}/jobs/j",
        cwd=tmp_path, env=clean_environment() | environ | {"PYTHONUNBUFFERED": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.split()[:1] == ["21"]:
                break

        def delete() -> None:
            """Until the job has noticed: a bucket with a new checkpoint stays, and an upload in progress makes it anew here."""
            while process.poll() is None:
                fs.invalidate_cache()
                with contextlib.suppress(Exception):
                    fs.rm(f"{bucket}/jobs", recursive=True)
                with contextlib.suppress(Exception):
                    fs.rmdir(bucket.partition("://")[2])
                time.sleep(0.2)

        threading.Thread(target=delete, daemon=True).start()
        rest = process.communicate(timeout=300)[0]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    last = rest.strip().splitlines()[-1]
    assert f"checkpoints_dir={bucket}/jobs/j: cannot write round-0" in last
    assert ".safetensors (FileNotFoundError" in last
    assert "Traceback" not in rest
