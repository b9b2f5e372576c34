"""Fixtures: small models and data sets, workers in real processes, the command line, a MongoDB-wire server."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl import launch
from tests import builders

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "train_federated.py"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Results depend on the number of threads; and two cores are few."""
    torch.set_num_threads(1)


@pytest.fixture
def run_distributed(tmp_path: Path) -> Callable[..., list[Any]]:
    """Run `function(rank, num_workers, memory, folder, *args)` in real processes; its results, by rank."""

    def run(function: Callable[..., Any], num_workers: int, *args: Any) -> list[Any]:
        return builders.run_distributed(function, num_workers, tmp_path, *args)

    return run


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Type `scripts/train_federated.py` with arguments, in an empty folder."""

    def run(*arguments: str, timeout: float = 120, **environ: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=tmp_path,
            env=clean_environment() | environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def clean_environment() -> dict[str, str]:
    """The environment without what a developer's own `.env` or shell may set. Empty wins over `.env`."""
    return os.environ | dict.fromkeys(("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST"), "")


@pytest.fixture
def mongo(tmp_path: Path) -> Iterator[str]:
    """`host:port` of a MongoDB-wire server in its own process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = tmp_path / "mongo"
    data.mkdir()
    server = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "nx-27017"),
            "--data-dir",
            str(data),
            "-p",
            str(port),
            "--log-file",
            str(tmp_path / "mongo.log"),
            "--pid-file",
            str(tmp_path / "mongo.pid"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server doesn't answer"
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session", autouse=True)
def _no_process_is_left() -> Iterator[None]:
    """All children of the tests are gone when they are through."""
    yield
    import multiprocessing

    assert multiprocessing.active_children() == []


assert launch  # imported here so that its fork server starts from this process
