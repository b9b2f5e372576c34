"""Flower's strategies and ours, on the same deltas of eight unequal sites, over four rounds.

`./run-local.sh --no-docker -m pytest -m peers -n 0 -s` prints the largest differences.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import aggregation, server
from scaling_fl.federated.aggregation import qffl
from scaling_fl.models.flat_parameters import Layout
from tests import builders, environment

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1200)]

ROUNDS = 4
SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [1, 4, 9, 15, 18, 27, 33])]
SIZES = [len(shard) for shard in SHARDS]
LOSS = np.array([1.4, 1.1, 0.9, 0.5])
UNIFORM = {"weighting": "uniform"}
ADAPTIVE = {"server_learning_rate": 0.1, "server_tau": 0.01}
CLIP = UNIFORM | {"sampling": "poisson", "participation": 1.0, "dp_clip": 2.0, "dp_delta": 1e-3, "dp_seed": 1}
CLIP |= {"dp_noise_multiplier": 1e-12}
METHODS: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5},
    "FedAdam": {"server_optimiser": "adam"} | ADAPTIVE,
    "FedYogi": {"server_optimiser": "yogi"} | ADAPTIVE,
    "FedAdagrad": {"server_optimiser": "adagrad"} | ADAPTIVE,
    "median": {"aggregation": "median"} | UNIFORM,
    "trimmed mean": {"aggregation": "trimmed_mean", "faulty_sites": 2} | UNIFORM,
    "Krum": {"aggregation": "krum", "faulty_sites": 2} | UNIFORM,
    "Multi-Krum": {"aggregation": "krum", "faulty_sites": 2, "krum_sites": 4} | UNIFORM,
    "q-FFL": {"fairness_q": 2.0, "optimiser": "sgd", "learning_rate": 100.0} | UNIFORM,
    "clipping": CLIP,
    "adaptive clipping": CLIP | {"dp_clip_quantile": 0.5, "dp_count_noise": 1e-9},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Flower's results for `given()`, by method."""
    folder = tmp_path_factory.mktemp("flower")
    np.savez(folder / "given.npz", **given())
    programs = environment.install(tmp_path_factory.getbasetemp().parent, "flower", "flwr==1.42.0")
    environment.run(programs, Path(__file__).with_name("flower_rounds.py"), folder / "given.npz", folder / "found.npz")
    return np.load(folder / "found.npz")


def given() -> dict[str, Any]:
    """Deltas with lengths on both sides of the clip; the last site's are far away from the others'."""
    layout, rng = Layout(builders.bert()), np.random.default_rng(4)
    deltas = rng.normal(0.002, 0.02, (ROUNDS, 8, layout.size)) * rng.uniform(0.3, 2.5, (ROUNDS, 8, 1))
    deltas[:, 7] -= 0.2
    start = rng.normal(0, 0.1, layout.size)
    # Flower computes in the precision of its arrays: in float64 all rounding is ours.
    start, deltas = (values.astype(np.float32).astype(np.float64) for values in (start, deltas))
    return {"start": start, "deltas": deltas, "sizes": SIZES, "loss": LOSS}


def ours(
    alone: Callable[..., Any], name: str, *, start_of_v: float | None = None,
    rates: Sequence[float] = (1.0,) * ROUNDS, **more: Any,
) -> np.ndarray:  # fmt: skip
    """The server's parameters after each round (rounds, size); `rates` multiply the server's learning rate."""
    config = dataclasses.replace(Config.from_mapping({"num_sites": 8, "num_rounds": ROUNDS} | METHODS[name]), **more)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    data = given()
    state.params[:] = torch.from_numpy(data["start"].astype(np.float32))
    if start_of_v is not None:
        state.moments[1] = start_of_v
    optimiser, after = server.optimiser(config), []
    for round_ in range(1, ROUNDS + 1):
        combination = aggregation.begin(worker_sites, collectives, state, round_)
        if isinstance(combination, qffl.FairMean):  # each site has the loss that Flower is given for all
            combination.losses = dict.fromkeys(range(8), LOSS[round_ - 1])
            combination.weights = dict.fromkeys(range(8), 1 / 8)
        for site in range(8):
            delta = torch.zeros(len(state.row))
            delta[: len(state.params)] = torch.from_numpy(data["deltas"][round_ - 1, site].astype(np.float32))
            combination.add(site, delta)
        scaled = dataclasses.replace(optimiser, learning_rate=optimiser.learning_rate * rates[round_ - 1])
        for chunk, delta in combination.combined():
            scaled.step(state, delta, chunk)
        after.append(state.params.numpy().copy())
    return np.array(after)


def difference(name: str, one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a share of the largest movement."""
    share = float(np.abs(one - other).max() / np.abs(other - given()["start"]).max())
    print(f"Flower, {name}: largest difference {share:.1e} of the largest movement")
    return share


# Flower's second moments start at 0, not at τ². Its FedAdam corrects the bias, with the exponent t + 1. Its clip follows
# the share of deltas that are clipped where Andrew et al. take the share of those that aren't, and so moves away from
# their median.
CONVENTIONS: dict[str, dict[str, Any]] = {
    "FedAdam": {"start_of_v": 0.0, "rates": [(1 - 0.99**t) ** 0.5 / (1 - 0.9**t) for t in range(2, ROUNDS + 2)]},
    "FedYogi": {"start_of_v": 0.0},
    "FedAdagrad": {"start_of_v": 0.0},
    "adaptive clipping": {"dp_clip_rate": -0.2},
}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CONVENTIONS])
def test_the_same_deltas_give_the_same_parameters(alone: Callable[..., Any], theirs: Any, name: str) -> None:
    assert difference(name, ours(alone, name), theirs[name]) < 2e-6


@pytest.mark.parametrize("name", CONVENTIONS)
def test_these_differ(alone: Callable[..., Any], theirs: Any, name: str) -> None:
    assert difference(name, ours(alone, name), theirs[name]) > 1e-3


@pytest.mark.parametrize("name", CONVENTIONS)
def test_by_its_convention_the_parameters_are_the_same(alone: Callable[..., Any], theirs: Any, name: str) -> None:
    found = ours(alone, name, **CONVENTIONS[name])
    assert difference(f"{name}, by Flower's convention", found, theirs[name]) < 2e-6
