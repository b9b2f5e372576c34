"""What other programs are given: a model, and the batches of three unequal sites."""

from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl.config.schema import Config
from tests import builders
from tests.federated.training import SHARDS, WHOLE_SHARD

KEYS = WHOLE_SHARD | {"num_sites": 3, "num_rounds": 4, "num_local_epochs": 3, "optimiser": "sgd", "learning_rate": 0.02}


def write(folder: Path, **more: Any) -> None:
    """Write `model/` and `given.npz`: `ids-K`, `mask-K` and `labels-K` of each site K, and `more`."""
    module = builders.bert(dropout=0.0)
    module.save_pretrained(folder / "model")
    store = builders.resident(folder, Config.from_mapping(KEYS), module).train
    for site, shard in enumerate(SHARDS):
        batch = store.batch(shard)
        more |= {f"ids-{site}": batch.input_ids, f"mask-{site}": batch.attention_mask, f"labels-{site}": batch.labels}
    np.savez(folder / "given.npz", **more)
