"""Where nothing looks at single deltas, sites leave their parameters to the sum, which subtracts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.distributed.weighted_sum import WeightedSum
from scaling_fl.federated import aggregation
from tests import builders
from tests.federated.test_worker_sites import SHARDS, final, place


def counted(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config, deltas: bool
) -> tuple[np.ndarray, set[bool]]:
    """The server's parameters after all rounds, and whether the sums were given parameters."""
    add, given = WeightedSum.add, set[bool]()

    def noted(self: WeightedSum, site: int, row: Any, weight: float, server: Any = None) -> None:
        given.add(server is not None)
        add(self, site, row, weight, server)

    WeightedSum.add = noted  # type: ignore[method-assign]
    if deltas:
        aggregation.takes_params = lambda *_: False  # type: ignore[assignment]
    return final(rank, num_workers, memory, folder / str(deltas), config), given


@pytest.mark.parametrize("num_workers", [2, 7])
@pytest.mark.parametrize("keys", [{}, {"exact_sum": False, "server_optimiser": "adam"}, {"fednova": True}])
def test_the_result_is_that_of_deltas_bit_by_bit(
    run_distributed: Any, tmp_path: Path, num_workers: int, keys: dict[str, Any]
) -> None:
    config = Config(site_ids=(-1,) * num_workers, num_sites=7, num_rounds=3, batch_size=4, **keys)
    for deltas in (True, False):  # write the token stores
        builders.resident(place(tmp_path / str(deltas), num_workers, config, False), config, builders.bert())
    sent = run_distributed(counted, num_workers, config, False)
    expected = run_distributed(counted, num_workers, config, True)
    assert [given for _, given in sent] == [{True}] * num_workers
    assert [given for _, given in expected] == [{False}] * num_workers
    for params, _ in sent:
        assert np.array_equal(params, expected[0][0])


@pytest.mark.parametrize(
    ("keys", "params"),
    [
        ({}, True), ({"fednova": True}, True), ({"server_optimiser": "adam"}, True), ({"keep_optimiser": True}, True),
        ({"baseline": "centralised"}, True), ({"proximal_mu": 0.1}, False), ({"scaffold": "II"}, False),
        ({"feddyn_alpha": 0.1}, False), ({"ditto_lambda": 0.1}, False), ({"personal": "classifier"}, False),
        ({"upload": "int8"}, False), ({"download": "bf16"}, False), ({"attack": "sign_flip", "attackers": 1}, False),
        ({"aggregation": "median"}, False), ({"fairness_q": 1.0}, False),
        ({"secure_aggregation": True}, False), ({"baseline": "local_only"}, False),
    ],
)  # fmt: skip
def test_who_looks_at_deltas_gets_them(alone: Callable[..., Any], keys: dict[str, Any], params: bool) -> None:
    config = Config(site_ids=(-1,), num_sites=7, num_rounds=1, **keys)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    assert aggregation.takes_params(combination, config) == params
