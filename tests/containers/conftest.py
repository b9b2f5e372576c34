"""A Docker engine, a copy of the repository, and its image, for tests marked `containers`."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SECRET = f"secret-{uuid.uuid4().hex}"  # in every file that images must not contain


def docker(*words: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=600, check=check, **options)


def _engine_answers() -> bool:
    try:
        return all(docker(*words, check=False).returncode == 0 for words in (["info"], ["compose", "version"]))
    except FileNotFoundError:
        return False


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The running engine, or an engine that is started for these tests and removed afterwards."""
    if _engine_answers():
        yield
        return
    script, folder = str(ROOT / "tests" / "containers" / "engine.sh"), tmp_path_factory.mktemp("engine")
    folder.chmod(0o755)  # for tests that run as another user
    started = subprocess.run([script, "up", str(folder)], capture_output=True, text=True, timeout=1200, check=False)
    try:
        if started.returncode != 0:
            pytest.skip(f"no Docker engine answers, and none could be started: {started.stderr.strip()}")
        with pytest.MonkeyPatch.context() as patch:
            for line in started.stdout.splitlines():
                name, _, value = line.partition("=")
                patch.setenv(name, value)
            yield
    finally:
        subprocess.run([script, "down", str(folder)], timeout=120, check=True)


@pytest.fixture(scope="session")
def environ(engine: None) -> Iterator[dict[str, str]]:
    """The environment for run-local.sh: an image and a volume for the tests, without the developer's settings."""
    name = f"scaling_fl-test-{uuid.uuid4().hex[:8]}"
    dropped = ("COMPOSE_FILE", "DATA_MOUNT_DIR", "NVIDIA_VISIBLE_DEVICES", "SCALING_FL_DEBUG")
    values = {
        key: value
        for key, value in os.environ.items()
        if key not in dropped and not key.startswith(("SACRED_", "MLFLOW_"))
    }
    yield values | {"SCALING_FL_IMAGE": name, "SCALING_FL_CACHE": name}
    for container in docker("ps", "-aq", "--filter", f"volume={name}").stdout.split():  # left by interrupted tests
        docker("rm", "--force", container)
    docker("volume", "rm", name, check=False)
    for image in docker("image", "ls", "--quiet", "--filter", f"reference={name}").stdout.split():
        docker("image", "rm", "--force", image)


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, with secrets and data in it."""
    folder = tmp_path_factory.mktemp("a copy")
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name in (
        ".env",
        "scripts/.env",
        "key.json",
        "data/private.csv",
        "runs/1/config.json",
        ".git/config",
        "checkpoints/a",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"HF_TOKEN={SECRET}\n")
    for path in [folder.parent, folder]:
        path.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def image(environ: dict[str, str], copy: Path) -> str:
    """The image of stage `train`, built by run-local.sh."""
    built = subprocess.run(
        [str(copy / "run-local.sh"), "-c", ""],
        env=environ,
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return f"{environ['SCALING_FL_IMAGE']}:train"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder where commands run: outside the repository, and with a space in its name."""
    folder = tmp_path / "my folder"
    folder.mkdir()
    return folder


@pytest.fixture
def no_container_is_left(engine: None) -> Iterator[None]:
    """Fail if a call has left a container or a network behind."""
    before = docker("network", "ls", "-q").stdout
    yield
    assert docker("ps", "-aq", "--filter", "name=scaling_fl-").stdout == ""
    assert docker("network", "ls", "-q").stdout == before
