"""pfl-research's algorithms and ours, on the same three unequal sites, over four rounds of three full-batch steps.

`./run-local.sh --no-docker -m pytest -m peers -n 0 -s` prints the largest differences.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import rounds, server
from scaling_fl.federated.privacy.accountant import Accountant
from tests import builders, environment
from tests.federated.peers import given
from tests.federated.peers.given import KEYS
from tests.federated.training import SHARDS, by_name

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

REQUIREMENTS = (
    f"torch=={torch.__version__.partition('+')[0]}",
    "setuptools<80.9",
    "pfl[pytorch]==0.6.0",
    "transformers==5.23.0",
)
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.5},
    "FedProx": {"proximal_mu": 8.0},
    "SCAFFOLD I": {"scaffold": "I", "weighting": "uniform"},
    "SCAFFOLD II": {"scaffold": "II", "weighting": "uniform"},
}
# Sampling probability, noise multiplier, rounds, δ.
MECHANISMS = [(0.2, 1.5, 50, 1e-3), (0.01, 0.8, 1000, 1e-5), (0.5, 4.0, 100, 1e-6)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """pfl-research's results, by METHOD/PARAMETER, and its bounds of ε."""
    folder = tmp_path_factory.mktemp("pfl")
    given.write(folder, mechanisms=MECHANISMS)
    programs = environment.install(tmp_path_factory.getbasetemp().parent, "pfl", *REQUIREMENTS)
    environment.run(programs, Path(__file__).with_name("pfl_rounds.py"), folder)
    return np.load(folder / "found.npz")


def difference(alone: Callable[..., Any], theirs: Any, method: str, variant: str = "") -> float:
    """The largest difference, as a share of the largest movement."""
    config, module = Config.from_mapping(KEYS | METHODS[method]), builders.bert(dropout=0.0)
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    worker_sites, collectives, state = alone(config, module, SHARDS)
    rounds.run(config, worker_sites, collectives, state, server.optimiser(config), lambda *_: None)
    ours = by_name(worker_sites.resident, state.params)
    other = {name: torch.from_numpy(theirs[f"{method}{variant}/{name}"]) for name in start}
    movement = max(float((other[name] - before).abs().max()) for name, before in start.items())
    share = max(float((ours[name] - other[name]).abs().max()) for name in start) / movement
    print(f"pfl-research, {method}{variant}: largest difference {share:.1e} of the largest movement")
    return share


@pytest.mark.parametrize("method", ["FedAvg", "FedAvgM", "FedProx"])
def test_the_same_sites_give_the_same_parameters(alone: Callable[..., Any], theirs: Any, method: str) -> None:
    assert difference(alone, theirs, method) < 1e-5


@pytest.mark.parametrize("method", ["SCAFFOLD I", "SCAFFOLD II"])
def test_scaffold_differs_by_a_sign(alone: Callable[..., Any], theirs: Any, method: str) -> None:
    """pfl-research's control variates are the means of −gradients, and are applied as if they were of gradients."""
    assert difference(alone, theirs, method) > 1e-2


@pytest.mark.parametrize("method", ["SCAFFOLD I", "SCAFFOLD II"])
def test_scaffold_with_the_sign_exchanged(alone: Callable[..., Any], theirs: Any, method: str) -> None:
    assert difference(alone, theirs, method, ", sign exchanged") < 1e-5


def test_epsilon_is_within_the_bounds_of_another_accountant(theirs: Any) -> None:
    """PRV (Gopi et al. 2021), independent of the package that we use."""
    for (q, z, count, delta), (lower, estimate, upper) in zip(MECHANISMS, theirs["epsilon"], strict=True):
        pld = Accountant("pld", q, z).epsilon(count, delta)
        print(f"ε by PLD {pld:.4f}; by PRV {estimate:.4f}, between {lower:.4f} and {upper:.4f}")
        assert lower < pld < upper
