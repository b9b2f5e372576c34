"""FL4Health's clients and strategies, and ours, on the same three unequal sites, over four rounds of three full-batch steps.

`./run-local.sh --no-docker -m pytest -m peers -n 0 -s` prints the largest differences. FL4Health asks for Python 3.10 and for
packages of medical imaging. What is used here runs without them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import algorithms, rounds, server
from tests import builders, environment
from tests.federated.peers import given
from tests.federated.peers.given import KEYS
from tests.federated.test_own_models import with_tests
from tests.federated.training import SHARDS, by_name

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

REQUIREMENTS = (
    f"torch=={torch.__version__.partition('+')[0]}",
    "flwr==1.18.0",
    "opacus==1.6.0",
    "scikit-learn==1.9.1",
    "torchmetrics==1.9.0",
    "tqdm==4.70.1",
    "transformers==5.23.0",
    "wandb",
)
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedProx": {"proximal_mu": 8.0},
    "SCAFFOLD II": {"scaffold": "II", "weighting": "uniform"},
    "Ditto": {"ditto_lambda": 2.0, "site_test": "partitioned"},
    "FedPer": {"personal": "head"},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """FL4Health's results, by METHOD/PARAMETER and METHOD/SITE/PARAMETER."""
    folder = tmp_path_factory.mktemp("fl4health")
    given.write(folder)
    base = tmp_path_factory.getbasetemp().parent
    programs = environment.install(base, "fl4health", *REQUIREMENTS, alone="fl4health==0.4.2")
    environment.run(programs, Path(__file__).with_name("fl4health_rounds.py"), folder)
    return np.load(folder / "found.npz")


@pytest.mark.parametrize("method", METHODS)
def test_the_same_sites_give_the_same_parameters(
    alone: Callable[..., Any], tmp_path: Path, theirs: Any, method: str
) -> None:
    """Those of the global model, and of the sites' own. With FedPer the head is the sites' own, and nothing else."""
    config, module = Config.from_mapping(KEYS | METHODS[method]), builders.bert(dropout=0.0)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    if config.site_test is not None:
        worker_sites = with_tests(worker_sites, tmp_path)
    rounds.run(config, worker_sites, collectives, state, server.optimiser(config), lambda *_: None)
    ours = {f"{method}/{name}": value for name, value in by_name(resident, state.params).items()}
    for site in range(3) if resident.store is not None else ():
        kept = {name: torch.as_tensor(value) for name, value in resident.store.load(site).items()}
        own = algorithms.own_params(config, resident.model.layout, state.params, kept)
        ours |= {f"{method}/{site}/{name}": value for name, value in by_name(resident, own).items()}
    compared = [name for name in ours if name in theirs]
    if method == "FedPer":
        compared = [name for name in compared if ("classifier" in name) == (name.count("/") == 2)]
    assert len(compared) == {"Ditto": 4 * len(start), "FedPer": len(start) - 2 + 3 * 2}.get(method, len(start))
    other = {name: torch.from_numpy(theirs[name]) for name in compared}
    before = {name: start[name.rpartition("/")[2]] for name in compared}
    movement = max(float((other[name] - before[name]).abs().max()) for name in compared)
    share = max(float((ours[name] - other[name]).abs().max()) for name in compared) / movement
    print(f"FL4Health, {method}: largest difference {share:.1e} of the largest movement")
    assert share < 1e-4  # FL4Health averages parameters in float32, not deltas
