from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import server
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState, fill_state, initial_moments, state_arrays


@pytest.mark.parametrize("part", [slice(0, 6), slice(0, 3), slice(2, 6), slice(4, 6), slice(3, 3)])
def test_a_chunk_of_the_state_is_updated_in_place(part: slice) -> None:
    state = ServerState(row=torch.arange(6.0), trained=4, round=0)
    delta = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    SGD(learning_rate=0.5).step(state, delta[part].clone(), part)
    # Trained values move by half the delta; the values after them move by all of it.
    after = [0 - 0.5, 1 - 1.0, 2 - 1.5, 3 - 2.0, 4 - 5.0, 5 - 6.0]
    expected = torch.arange(6.0)
    expected[part] = torch.tensor(after)[part]
    assert state.params.tolist() == expected.tolist()


def test_fedavg_is_rate_1() -> None:
    state = ServerState(row=torch.tensor([1.0]), trained=1, round=0)
    SGD().step(state, torch.tensor([0.25]), slice(0, 1))
    assert state.params.item() == 0.75


def start_of_moments(optimiser: server.SGD | server.Adaptive, size: int) -> torch.Tensor:
    """The moments (n, size) that a new job starts with."""
    tensors = initial_moments(optimiser.initial_moments, {"weight": np.ones(size, np.float32)})
    return torch.from_numpy(np.stack([tensors[name] for name in sorted(tensors)]))


def reference(
    kind: str, deltas: np.ndarray, rate: float, momentum: float, beta2: float = 0.99, tau: float = 1e-3
) -> np.ndarray:
    """Algorithm 2 of Reddi et al. 2021 in float64, from x = m = 0 and v = τ²: x + rate × m / (√v + τ), Δ = −delta."""
    x, m = (np.zeros(deltas.shape[1]) for _ in range(2))
    v = np.full(deltas.shape[1], tau**2)
    for delta in -deltas.astype(np.float64):
        m = momentum * m + (1 - momentum) * delta
        v = {
            "adagrad": v + delta**2,
            "adam": beta2 * v + (1 - beta2) * delta**2,
            "yogi": v - (1 - beta2) * delta**2 * np.sign(v - delta**2),
        }[kind]
        x = x + rate * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("adam", {}), ("yogi", {}), ("adagrad", {}), ("adam", {"server_beta2": 0.75, "server_tau": 0.01}),
        ("yogi", {"server_beta2": 0.5}), ("adagrad", {"server_tau": 0.004}),
    ],
)  # fmt: skip
def test_adaptive_optimisers_match_the_paper_in_any_chunks(kind: str, keys: dict[str, float]) -> None:
    deltas = np.random.default_rng(3).normal(0, 0.003, (5, 8)).astype(np.float32)  # near τ, where the start matters
    optimiser = server.optimiser(
        Config.from_mapping({"server_optimiser": kind, "server_learning_rate": 0.05, "server_momentum": 0.7} | keys)
    )
    expected = reference(
        kind, deltas[:, :6], 0.05, 0.7, **{key.removeprefix("server_"): value for key, value in keys.items()}
    )
    for parts in ([slice(0, 8)], [slice(0, 3), slice(3, 7), slice(7, 8)]):
        moments = start_of_moments(optimiser, 8)
        state = ServerState(torch.zeros(8), trained=6, round=0, moments=moments.clone())
        for delta in deltas:
            for part in parts:
                optimiser.step(state, torch.from_numpy(delta[part].copy()), part)
        np.testing.assert_allclose(state.params[:6].numpy(), expected, rtol=1e-5)
        np.testing.assert_allclose(state.params[6:].numpy(), -deltas[:, 6:].sum(0), rtol=1e-5)
        assert state.moments is not None
        assert torch.equal(state.moments[:, 6:], moments[:, 6:]), "averaged-only values have no moments"


@pytest.mark.parametrize(
    ("kind", "second_moment"),
    [("adam", 0.99 * 1e-6 + 0.01 * 1e-2), ("yogi", 1e-6 + 0.01 * 1e-2), ("adagrad", 1e-6 + 1e-2)],
)
def test_the_first_adaptive_step_by_hand(kind: str, second_moment: float) -> None:
    """delta = 0.1, so delta² = 0.01, far above v = τ² = 10⁻⁶; the step is rate × delta / (√v + τ) without momentum."""
    optimiser = server.optimiser(Config(server_optimiser=kind, server_learning_rate=0.5, server_momentum=0.0))
    state = ServerState(torch.zeros(1), trained=1, round=0, moments=start_of_moments(optimiser, 1))
    optimiser.step(state, torch.tensor([0.1]), slice(0, 1))
    assert state.params.item() == pytest.approx(-0.5 * 0.1 / (second_moment**0.5 + 1e-3), rel=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_matches_pytorch_in_unequal_chunks(nesterov: bool) -> None:
    deltas = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32))
    keys = {"server_momentum": 0.9, "server_learning_rate": 0.5, "server_nesterov": nesterov}
    optimiser = server.optimiser(Config.from_mapping(keys))
    state = ServerState(torch.ones(5), trained=5, round=0, moments=start_of_moments(optimiser, 5))
    reference_params = torch.nn.Parameter(torch.ones(5))
    plain = torch.optim.SGD([reference_params], lr=0.5, momentum=0.9, nesterov=nesterov)
    for delta in deltas:
        for chunk in (slice(0, 2), slice(2, 5)):
            optimiser.step(state, delta[chunk].clone(), chunk)
        reference_params.grad = delta
        plain.step()
    torch.testing.assert_close(state.params, reference_params.data)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, SGD(1.0, 0.0)),
        ({"server_learning_rate": 0.5, "server_momentum": 0.9}, SGD(0.5, 0.9)),
        ({"server_optimiser": "adam"}, server.Adaptive("adam", 0.001, 0.9)),
        ({"server_optimiser": "yogi", "server_momentum": 0.0}, server.Adaptive("yogi", 0.001, 0.0)),
        ({"server_optimiser": "adagrad", "server_learning_rate": 0.1}, server.Adaptive("adagrad", 0.1, 0.0)),
    ],
)
def test_unset_keys_have_the_usual_defaults(keys: dict[str, Any], expected: object) -> None:
    assert server.optimiser(Config(**keys)) == expected


def test_state_with_moments_round_trips_by_tensor_name() -> None:
    from tests import builders

    model = builders.flat_model()
    block = torch.randn(3, model.layout.size)
    tensors = state_arrays(model, block)
    assert {"server_moment_0.classifier.bias", "server_moment_1.classifier.bias", "classifier.bias"} <= tensors.keys()
    received = torch.zeros_like(block)
    fill_state(model, received, tensors)
    for sent, got in zip(block, received, strict=True):
        for name, view in model.layout.views(got).items():
            assert torch.equal(view, model.layout.views(sent)[name])
    params = {name: array for name, array in tensors.items() if not name.startswith("server_moment_")}
    fresh = initial_moments((0.0, 0.25), params)
    assert fresh.keys() == tensors.keys() - params.keys()
    for name, array in fresh.items():
        assert (array == (0.25 if name.startswith("server_moment_1.") else 0.0)).all()
        assert (array.dtype, array.shape) == (np.float32, params[name.split(".", 1)[1]].shape)
