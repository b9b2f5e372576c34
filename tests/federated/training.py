"""Shards of sites, and the training of all rounds in this process."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.parameter import Parameter

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import rounds
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites
from scaling_fl.models import adapters, base
from tests import builders

SHARD = np.array([1, 4, 9, 16, 25, 36, 2])  # of one site
# Forty examples on three sites: 5, 9 and 26, neither sorted nor contiguous.
SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [5, 14])]
WHOLE_SHARD = {"batch_size": 64, "group_by_length": False}
ADAPTERS = {"trainable": "lora", "lora_rank": 2}  # for methods, which don't know of them


def model(config: Config) -> Any:
    """A BERT without dropout, with the adapters that `config` may ask for. None of their matrices is 0."""
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    torch.manual_seed(2)
    for name in sorted(adapters.names(module)):
        torch.nn.init.normal_(module.get_parameter(name), std=0.3)
    return module


def trained(module: Any) -> list[Parameter]:
    """The parameters that sites train."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def trained_names(module: Any) -> list[str]:
    """Their names."""
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def loss(resident: Resident, module: Any, indices: np.ndarray, mu: float = 0.0, server: Any = None) -> torch.Tensor:
    """The mean loss of a batch by torch alone, plus μ/2 times the squared distance to the server's parameters."""
    batch = resident.train.batch(indices)
    logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    value = cross_entropy(logits, batch.labels)
    for own, theirs in zip(module.parameters(), server.parameters(), strict=True) if mu else ():
        value = value + mu / 2 * (own - theirs.detach()).square().sum()
    return value


def train_federated(
    config: Config, worker_sites: WorkerSites, collectives: Collectives, state: ServerState
) -> list[dict[str, float]]:
    """Train all rounds; return the metrics of each."""
    results: list[dict[str, float]] = []
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, values: results.append(values))
    return results


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def by_name(resident: Resident, values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).clone() for name, array in resident.model.arrays(values).items()}
