"""Results of sites' own models, and on their own test rows, don't depend on which worker trains and evaluates which site."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import rounds
from scaling_fl.federated.server import SGD
from scaling_fl.federated.worker_sites import Shards, SiteTests, write_shards
from scaling_fl.models import base
from tests import builders
from tests.federated.test_own_models import KEYS, TESTS
from tests.federated.training import SHARDS


def all_metrics(rank: int, num_workers: int, memory: SharedMemory, folder: Path, keys: dict[str, Any]) -> Any:
    torch.set_num_threads(1)
    config, folder = Config.from_mapping(KEYS | keys), folder / str(num_workers)
    module = builders.bert()
    base.freeze(module, config)
    worker_sites, collectives, state = builders.worker(folder, config, module, SHARDS, rank, num_workers, memory)
    if rank == 0:
        write_shards(folder / "tests", TESTS)
    collectives.barrier()
    worker_sites = dataclasses.replace(
        worker_sites, tests=SiteTests(worker_sites.resident.test, Shards(folder / "tests"))
    )
    seen: list[dict[str, Any]] = []
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    collectives.close()
    own = [{name: value for name, value in of_round.items() if "second" not in name} for of_round in seen]
    return own, {name: value.tolist() for name, value in state.confusion.items()}, state.params.numpy().copy()


@pytest.mark.parametrize(
    "keys",
    [
        {"ditto_lambda": 0.5, "sites_per_round": 2},
        {"personal": "head", "fine_tune_steps": 2, "upload": "int8"},
        {"trainable": "lora", "lora_rank": 2, "lora_dropout": 0.1, "personal": "lora_B|classifier"},
    ],
)
def test_results_do_not_depend_on_the_workers(run_distributed: Any, tmp_path: Path, keys: dict[str, Any]) -> None:
    for num_workers in (1, 3):
        builders.resident(tmp_path / str(num_workers), Config.from_mapping(KEYS | keys), builders.bert())
    (alone,) = run_distributed(all_metrics, 1, keys)
    assert alone[0][-1].keys() > {"personal.accuracy", "validation.loss", "train.loss"}
    for own, confusion, params in run_distributed(all_metrics, 3, keys):
        assert own == alone[0]
        assert confusion == alone[1]
        assert np.array_equal(params, alone[2])
