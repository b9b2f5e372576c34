from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated.resident import Resident
from tests import builders


@pytest.fixture
def resident(tmp_path: Path) -> Resident:
    return builders.resident(tmp_path, Config(batch_size=3, learning_rate=0.02), builders.bert())


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A worker in this process that trains all sites."""
    opened: list[Collectives] = []

    def build(config: Config, module: Any, shards: list[np.ndarray]) -> Any:
        worker = builders.worker(tmp_path, config, module, shards)
        opened.append(worker[1])
        return worker

    yield build
    for collectives in opened:
        collectives.close()
