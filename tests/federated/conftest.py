from pathlib import Path

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.federated.resident import Resident
from tests import builders


@pytest.fixture
def resident(tmp_path: Path) -> Resident:
    return builders.resident(tmp_path, Config(batch_size=3, learning_rate=0.02), builders.bert())
