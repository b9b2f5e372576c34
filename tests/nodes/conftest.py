"""Fixtures: three machines on a network, and the files that they read."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builders
from tests.nodes.network import Machine, network, unavailable


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data and the model, which all machines read."""
    folder = tmp_path_factory.mktemp("files")
    builders.write_csv(folder / "train.csv", 59)
    builders.write_csv(folder / "t.csv", 23, 1)
    builders.pretrained(folder / "model")
    return folder


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    if reason := unavailable():
        pytest.skip(reason)
    with network(3, tmp_path) as machines:
        yield machines
