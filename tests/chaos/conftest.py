"""A MongoDB-wire server that a test can kill and restart."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from tests.conftest import free_port


class Server:
    """A MongoDB-wire server that can be killed, and restarts with its data."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "mongo").mkdir(parents=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        program = str(Path(sys.executable).parent / "nx-27017")
        files = ["--log-file", str(self.folder / "mongo.log"), "--pid-file", str(self.folder / "mongo.pid")]
        self.process = subprocess.Popen(
            [program, "--data-dir", str(self.folder / "mongo"), "-p", str(self.port), *files],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.database("admin").command("ping")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def database(self, name: str) -> Any:
        return pymongo.MongoClient(f"mongodb://{self.address}", serverSelectionTimeoutMS=20000)[name]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "server")
    yield server
    server.kill()
