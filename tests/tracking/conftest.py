"""MLflow servers: a stand-in, and the program itself."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import environment
from tests.tracking import mlflow
from tests.tracking.mlflow import Viewer


@pytest.fixture(params=["a stand-in", pytest.param("itself", marks=pytest.mark.mlflow)])
def server(request: Any, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    server: Viewer = mlflow.StandIn()
    if request.param == "itself":
        server = mlflow.Itself(
            environment.install(tmp_path_factory.getbasetemp().parent, "mlflow", mlflow.REQUIREMENT),
            tmp_path / "server",
        )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def stand_in() -> Iterator[mlflow.StandIn]:
    server = mlflow.StandIn()
    server.start()
    yield server
    server.stop()
