import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scaling_fl import state_file
from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.runtime import launcher


@pytest.fixture
def job(small_config: Config, tmp_path: Path) -> tuple[Config, Any]:
    """A job with the checkpoint of a round, and the model in it: a plain one of the library, with other weights."""
    config = dataclasses.replace(small_config, server_momentum=0.9)  # so that the checkpoint holds moments as well
    (tmp_path / "work").mkdir()
    plan = launcher.prepare(config, str(tmp_path / "work"), lambda event: None)
    folder = tmp_path / "work" / "model"
    torch.manual_seed(8)
    module = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.from_pretrained(folder, initializer_range=1.0)
    ).eval()
    tensors = dict(state_file.read_state(tmp_path / "work" / "state.safetensors")[0])
    tensors |= {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    store = CheckpointStore(str(config.checkpoints_dir))
    store.probe()
    store.save(7, tensors, checkpoint_header(plan, {}, None))
    return config, module
