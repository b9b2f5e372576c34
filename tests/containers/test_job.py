"""Jobs in containers, started by the same commands as on the host."""

import json
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.conftest import ObjectStore
from tests.containers.conftest import docker

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(2400),
    pytest.mark.usefixtures("image", "no_container_is_left"),
]

Run = Callable[..., "subprocess.CompletedProcess[str]"]
TRAIN = ["scripts/train_federated.py", "with"]
USER = 4321  # has no entry in /etc/passwd, here or in the image


@pytest.fixture
def run(copy: Path, folder: Path, environ: dict[str, str]) -> Run:
    def run(*words: str, cwd: Path = folder, **more: Any) -> "subprocess.CompletedProcess[str]":
        variables = environ | more.pop("variables", {})
        return subprocess.run(
            [str(copy / "run-local.sh"), *words], cwd=cwd, env=variables, capture_output=True, text=True, timeout=300,
            check=False, **more,
        )  # fmt: skip

    return run


def test_arguments_and_exit_status_pass_through_unchanged(run: Run) -> None:
    script = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd()])); sys.exit(7)"
    words = ["with", "site_ids=[0,0,1,1]", "train_path=/a b/c*.csv", "author='me' \"too\"", "", "x=$HOME", "$$y", "é"]
    done = run("-c", script, *words)
    assert (done.returncode, done.stderr.strip()) == (7, "")
    assert json.loads(done.stdout) == [words, "/workspace"]


def test_relative_paths_start_in_the_callers_folder_and_the_caller_owns_the_results(run: Run, folder: Path) -> None:
    (folder / "data").mkdir()
    builders.write_csv(folder / "data" / "train.csv", 41)
    builders.write_csv(folder / "data" / "test.csv", 9, 1)
    builders.pretrained(folder / "model")
    options: dict[str, Any] = {}
    if os.getuid() == 0:  # run as another user
        for path in [folder, *folder.rglob("*"), *folder.parents]:
            if path == folder or folder in path.parents:
                os.chown(path, USER, USER)
            elif not path.stat().st_mode & stat.S_IXOTH:
                path.chmod(path.stat().st_mode | 0o055)
        options = {"user": USER, "group": USER, "extra_groups": []}
    user = options.get("user", os.getuid())
    words = [
        *TRAIN, "site_ids=[0,0]", "num_rounds=1", "task_name=csv", "train_path=data/train.csv", "test_path=data/test.csv",
        "text_column=body", "label_column=topic", "model=model", "max_seq_len=16", "job_name=j", "checkpoints_dir=out",
    ]  # fmt: skip
    done = run(*words, variables={"TMPDIR": "/tmp", "SCALING_FL_CACHE": f"scaling_fl-test-{user}"}, **options)
    try:
        assert done.returncode == 0, done.stderr
        made = [path for name in ("runs", "out") for path in (folder / name).rglob("*")]
        assert folder / "out" / "model" / "model.safetensors" in made
        assert {path.stat().st_uid for path in made} == {user}
        again = run(*words, variables={"SCALING_FL_CACHE": f"scaling_fl-test-{user}", "TMPDIR": "/tmp"}, **options)
        assert "job j is finished: 1 round is done, and the model is in out/model" in again.stdout, again.stderr
    finally:
        docker("volume", "rm", f"scaling_fl-test-{user}", check=False)


def test_the_run_records_the_commit(run: Run, copy: Path, folder: Path) -> None:
    (copy / ".git").rename(copy / "not-git")
    git = ["git", "-C", str(copy), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    try:
        subprocess.run([*git, "add", "run-local.sh"], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "all"], check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        done = run(*TRAIN, "demo", "num_rounds=1", "max_train_examples=100", "max_test_examples=50")
        assert done.returncode == 0, done.stderr
        (recorded,) = json.loads((folder / "runs" / "1" / "run.json").read_text())["experiment"]["repositories"]
        assert (recorded["commit"], recorded["dirty"]) == (commit, False)
    finally:
        subprocess.run(["rm", "-rf", str(copy / ".git")], check=True)
        (copy / "not-git").rename(copy / ".git")


def test_data_may_be_in_another_folder_and_an_empty_mount_point_is_removed(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("found")
    done = run("-c", "print(open('data/a').read())", variables={"DATA_MOUNT_DIR": str(tmp_path / "elsewhere")})
    assert done.stdout == "found\n", done.stderr
    assert list(folder.iterdir()) == []


def test_a_google_key_file_is_mounted_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text("the key")
    (tmp_path / "another.json").write_text("another")
    script = "import os; p = os.environ['GOOGLE_APPLICATION_CREDENTIALS']; print(open(p).read(), os.listdir(os.path.dirname(p)))"
    done = run("-c", script, variables={"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")})
    assert done.stdout == "the key ['google.json']\n", done.stderr
    assert run("-c", "import os; print(repr(os.environ['GOOGLE_APPLICATION_CREDENTIALS']))").stdout == "''\n"


@pytest.mark.parametrize("object_store", ["s3"], indirect=True)
def test_credentials_for_an_object_store_come_from_the_shells_variables(
    run: Run, object_store: ObjectStore, tmp_path: Path
) -> None:
    bucket, environ, fs = object_store
    for name, count, seed in (("train.csv", 60, 0), ("test.csv", 9, 1)):
        fs.put_file(str(builders.write_csv(tmp_path / name, count, seed)), f"{bucket}/{name}")
    done = run(
        *TRAIN, "site_ids=[-1]", "num_rounds=1", "task_name=csv", f"train_path={bucket}/train.csv",
        f"test_path={bucket}/test.csv", "text_column=body", "label_column=topic", "model=tiny", "max_seq_len=16",
        "job_name=j", f"checkpoints_dir={bucket}/out", variables=environ | {"NETWORK_MODE": "host"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert fs.exists(f"{bucket}/out/model/model.safetensors")


def test_dev_shm_has_the_requested_size(run: Run) -> None:
    script = "import os; found = os.statvfs('/dev/shm'); print(found.f_frsize * found.f_blocks)"
    assert int(run("-c", script).stdout) == 2**30
    assert int(run("-c", script, variables={"SHM_SIZE": "128m"}).stdout) == 2**27


def test_gpus_are_requested_from_the_engine(run: Run) -> None:
    """Through a reservation, which this engine must refuse, and through the runtime's variable."""
    if "nvidia" in docker("info", "--format", "{{.Runtimes}}").stdout:
        pytest.skip("this engine has GPUs")
    files = "docker-compose.yaml:docker-compose.gpu.yaml"
    done = run("-c", "print('ran')", variables={"COMPOSE_FILE": files, "NVIDIA_VISIBLE_DEVICES": "0,1"})
    assert done.returncode != 0
    assert done.stdout == ""
    assert 'could not select device driver "nvidia" with capabilities: [[gpu]]' in done.stderr
    script = "import os; print(os.environ['NVIDIA_VISIBLE_DEVICES'], os.environ['NVIDIA_DRIVER_CAPABILITIES'])"
    assert run("-c", script).stdout == "all compute,utility\n"
    assert run("-c", script, variables={"NVIDIA_VISIBLE_DEVICES": "0,1"}).stdout == "0,1 compute,utility\n"


def test_concurrent_calls_do_not_interfere(copy: Path, folder: Path, environ: dict[str, str]) -> None:
    script = "import sys, time; time.sleep(3); print(sys.argv[1])"
    calls = [
        subprocess.Popen(
            [str(copy / "run-local.sh"), "-c", script, word], cwd=folder, env=environ, stdout=subprocess.PIPE, text=True
        )
        for word in ("one", "two")
    ]
    assert [(call.communicate(timeout=300)[0], call.returncode) for call in calls] == [("one\n", 0), ("two\n", 0)]


def test_a_failed_build_of_the_image_is_reported(run: Run, copy: Path) -> None:
    dockerfile = copy / "Dockerfile"
    text = dockerfile.read_text()
    try:
        dockerfile.write_text(text.replace("COPY . .", "COPY no-such-file ."))
        done = run("-c", "print('ran')")
        assert done.returncode not in (0, None)
        assert done.stdout == ""
        assert "no-such-file" in done.stderr
        assert "the image could not be built (--no-docker runs without one)" in done.stderr
    finally:
        dockerfile.write_text(text)
