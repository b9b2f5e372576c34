"""LoRA aggregations by the mean of the products: against dense matrices, on unequal sites."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed, UserError
from scaling_fl.federated import aggregation, server
from scaling_fl.federated.aggregation.lora_product import truncated
from scaling_fl.federated.algorithms import lora_ranks
from scaling_fl.models import adapters, base
from scaling_fl.models.flat_parameters import Layout
from tests import builders
from tests.federated.training import SHARDS, by_name, digest, train_federated

KEYS = {
    "num_sites": 3, "num_rounds": 2, "batch_size": 4, "learning_rate": 0.02, "seed": 4,
    "trainable": "lora", "lora_rank": 3, "lora_alpha": 4.5,
}  # fmt: skip
SCALE = 1.5  # alpha / rank
COHORT = {"sites_per_round": 2}


def layers(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name.removesuffix(".lora_A.default.weight") for name in tensors if name.endswith(".lora_A.default.weight")]


def product(tensors: dict[str, torch.Tensor], layer: str, kind: str = "default") -> torch.Tensor:
    b, a = (tensors[f"{layer}.lora_{which}.{kind}.weight"].double() for which in "BA")
    return b @ a


def one_round(
    alone: Callable[..., Any], config: Config
) -> tuple[
    dict[str, torch.Tensor], list[tuple[float, dict[str, torch.Tensor]]], dict[str, torch.Tensor], dict[str, float]
]:
    """The third round: the server's tensors before it, each site's weight and tensors, the server's after it, results."""
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)  # two rounds, so that nothing is 0 any more
    before = by_name(resident, state.params)
    participants = sorted(worker_sites.participants(3), key=lambda site: site.number)
    total = sum(site.num_examples for site in participants)
    combination: Any = aggregation.begin(worker_sites, collectives, state, 3)
    sites = []
    for site in participants:
        delta, _ = site.train(state.params, 3)
        sites.append((site.num_examples / total, by_name(resident, state.params - delta)))
        combination.add(site.number, delta)
    for chunk, delta in combination.combined():
        server.optimiser(config).step(state, delta, chunk)
    return before, sites, by_name(resident, state.params), combination.results


def mean_product(sites: list[tuple[float, dict[str, torch.Tensor]]], layer: str) -> torch.Tensor:
    return torch.stack([weight * product(tensors, layer) for weight, tensors in sites]).sum(0)


def low_rank(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    u, s, v = torch.linalg.svd(matrix)
    return u[:, :rank] * s[:rank] @ v[:rank]


def assert_equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.norm() > 1e-6
    assert (found - expected).norm() < 1e-5 * expected.norm() + 1e-7


@pytest.mark.parametrize("more", [{}, COHORT, {"lora_ranks": (1, 3, 2)}])
def test_exact_makes_the_model_that_is_the_mean_of_the_sites_models(
    alone: Callable[..., Any], more: dict[str, Any]
) -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": "exact"} | more)
    before, sites, after, results = one_round(alone, config)
    for layer in layers(before):
        own = torch.stack([w * (product(t, layer, "delta") + SCALE * product(t, layer)) for w, t in sites]).sum(0)
        assert_equal(product(after, layer, "delta") + SCALE * product(after, layer), own)
        assert (product(after, layer) - mean_product(sites, layer)).norm() > 1e-3 * mean_product(sites, layer).norm()
        for which in "AB":
            name = f"{layer}.lora_{which}.default.weight"
            assert_equal(after[name], torch.stack([w * t[name] for w, t in sites]).sum(0))
    assert results["lora.truncation_error"] == 0
    assert 0 < results["lora.product_error"] < 1


@pytest.mark.parametrize("more", [{}, COHORT, {"lora_ranks": (1, 3, 2)}])
def test_stack_adds_the_mean_product_to_the_base_and_begins_anew(
    alone: Callable[..., Any], more: dict[str, Any]
) -> None:
    before, sites, after, _ = one_round(alone, Config.from_mapping(KEYS | {"lora_aggregation": "stack"} | more))
    for layer in layers(before):
        expected = product(before, layer, "delta") + SCALE * mean_product(sites, layer)
        assert_equal(product(after, layer, "delta"), expected)
        a, b = (f"{layer}.lora_{which}.default.weight" for which in "AB")
        assert not after[b].any()
        assert not before[b].any(), "the round before it has begun anew as well"
        bound = after[a].shape[1] ** -0.5
        assert bound / 2 < after[a].abs().max() < bound * (1 + 1e-5), "Kaiming's uniform distribution"
        assert (after[a] - before[a]).abs().max() > bound / 4
    matrices = [after[f"{layer}.lora_A.default.weight"] for layer in layers(after)]
    assert len({matrix.sum().item() for matrix in matrices}) == len(matrices), "each layer has its own"


@pytest.mark.parametrize("more", [{}, COHORT, {"lora_ranks": (1, 3, 2)}])
def test_svd_keeps_the_product_of_the_rank_that_is_closest_to_the_mean(
    alone: Callable[..., Any], more: dict[str, Any]
) -> None:
    before, sites, after, results = one_round(alone, Config.from_mapping(KEYS | {"lora_aggregation": "svd"} | more))
    cut = whole = 0.0
    for layer in layers(before):
        mean = mean_product(sites, layer)
        assert_equal(product(after, layer), low_rank(mean, 3))
        a, b = (after[f"{layer}.lora_{which}.default.weight"].double() for which in "AB")
        torch.testing.assert_close(a @ a.T, torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)
        torch.testing.assert_close(b.norm(dim=0), torch.linalg.svdvals(mean)[:3], rtol=1e-4, atol=1e-7)
        cut += float((mean - low_rank(mean, 3)).square().sum())
        whole += float(mean.square().sum())
    assert results["lora.truncation_error"] == pytest.approx((cut / whole) ** 0.5, rel=1e-3)
    assert 0 < results["lora.truncation_error"] < 1


@pytest.mark.parametrize("how", ["exact", "stack"])
def test_what_is_added_to_the_base_is_cut_to_its_rank(alone: Callable[..., Any], how: str) -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "lora_delta_rank": 5})
    before, sites, after, results = one_round(alone, config)
    cut = whole = 0.0
    for layer in layers(before):
        mean = mean_product(sites, layer)
        if how == "exact":
            mean = mean - product(after, layer)
        expected = product(before, layer, "delta") + SCALE * mean
        assert_equal(product(after, layer, "delta"), low_rank(expected, 5))
        cut += float((expected - low_rank(expected, 5)).square().sum())
        whole += float(expected.square().sum())
    assert results["lora.truncation_error"] == pytest.approx((cut / whole) ** 0.5, rel=1e-2)
    assert results["lora.truncation_error"] > 1e-3


@pytest.mark.parametrize(("shape", "columns", "rank"), [((9, 4), 3, 2), ((4, 9), 6, 3), ((5, 5), 2, 4)])
def test_truncation_is_that_of_eckart_and_young(shape: tuple[int, int], columns: int, rank: int) -> None:
    """The last case has factors of a lower rank than is kept: nothing is cut."""
    torch.manual_seed(3)
    left, right = torch.randn(shape[0], columns).double(), torch.randn(columns, shape[1]).double()
    (found_left, found_right), cut, whole = truncated((left, right), rank)
    assert (found_left.shape, found_right.shape) == ((shape[0], rank), (rank, shape[1]))
    torch.testing.assert_close(found_left @ found_right, low_rank(left @ right, rank))
    values = torch.linalg.svdvals(left @ right).square()
    assert cut == pytest.approx(float(values[rank:].sum()), abs=1e-9)
    assert whole == pytest.approx(float(values.sum()))


@pytest.mark.parametrize("how", ["stack", "svd"])
def test_the_one_site_of_a_centralised_baseline_counts_whole(alone: Callable[..., Any], how: str) -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "baseline": "centralised"})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident, combination = worker_sites.resident, aggregation.begin(worker_sites, collectives, state, 1)
    (site,) = worker_sites.participants(1)
    delta, _ = site.train(state.params, 1)
    own = by_name(resident, state.params - delta)
    combination.add(site.number, delta)
    for chunk, combined in combination.combined():
        server.optimiser(config).step(state, combined, chunk)
    after = by_name(resident, state.params)
    for layer in layers(own):
        found = product(after, layer) if how == "svd" else product(after, layer, "delta") / SCALE
        assert_equal(found, product(own, layer))


def test_nobody_takes_part_and_nothing_changes(alone: Callable[..., Any]) -> None:
    config = Config.from_mapping(
        KEYS | {"lora_aggregation": "stack", "sampling": "poisson", "participation": 0.01, "num_rounds": 1}
    )
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    before = state.params.clone()
    train_federated(config, worker_sites, collectives, state)
    assert torch.equal(state.params, before)


@pytest.mark.parametrize("how", ["exact", "stack", "svd"])
def test_a_site_that_diverges_is_named(alone: Callable[..., Any], how: str) -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "learning_rate": 1e30})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    with pytest.raises(JobFailed, match="site"):
        train_federated(config, *alone(config, module, SHARDS))


def test_a_site_of_a_smaller_rank_has_zeros_beyond_it(alone: Callable[..., Any]) -> None:
    """And the mean is that of the padded matrices: HetLoRA."""
    config = Config.from_mapping(KEYS | {"lora_ranks": [1, 3, 2], "proximal_mu": 0.1, "weight_decay": 0.1})
    before, sites, after, _ = one_round(alone, config)
    for rank, (_, tensors) in zip((1, 3, 2), sites, strict=True):
        for layer in layers(tensors):
            a, b = (tensors[f"{layer}.lora_{which}.default.weight"] for which in "AB")
            assert not a[rank:].any()
            assert not b[:, rank:].any()
            assert a[:rank].any(dim=1).all()
            assert b[:, :rank].any(dim=0).all()
    for name in before:
        if ".lora_" in name:
            torch.testing.assert_close(after[name], torch.stack([w * t[name] for w, t in sites]).sum(0))


def test_ranks_are_dealt_in_turn() -> None:
    config = Config.from_mapping(KEYS | {"num_sites": 5, "lora_ranks": [1, 3]})
    assert [lora_ranks.of_site(config, site) for site in range(5)] == [1, 3, 1, 3, 1]
    assert lora_ranks.of_site(Config.from_mapping(KEYS), 4) == 3
    assert lora_ranks.of_site(Config.from_mapping(KEYS | {"lora_ranks": [1], "baseline": "centralised"}), 0) == 3


@pytest.mark.parametrize(
    ("more", "down", "up"),
    [
        ({}, 9, 9),
        ({"lora_ranks": [1, 3, 2]}, 6, 6),
        (
            {"lora_aggregation": "stack", "lora_delta_rank": 2},
            15,
            9,
        ),  # what is added to the base travels to the sites alone
    ],
)
def test_what_a_site_has_not_does_not_travel(
    alone: Callable[..., Any], more: dict[str, Any], down: int, up: int
) -> None:
    """`down` and `up` count the ranks that travel to and from three sites, beside the head."""
    config = Config.from_mapping(KEYS | {"num_rounds": 1} | more)
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    of_adapters = [name for name in adapters.names(module) if not adapters.is_delta(name)]
    per_rank = sum(module.get_parameter(name).numel() for name in of_adapters) // 3
    head = sum(p.numel() for p in module.parameters() if p.requires_grad) - 3 * per_rank
    results = train_federated(config, *alone(config, module, SHARDS))[-1]
    assert (results["bytes.down"], results["bytes.up"]) == tuple(4 * (3 * head + n * per_rank) for n in (down, up))


def test_a_site_of_lower_rank_shares_its_rows_of_a_alone(alone: Callable[..., Any]) -> None:
    config = Config.from_mapping(KEYS | {"num_rounds": 1, "lora_aggregation": "share_a", "lora_ranks": [1, 3, 2]})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    row_of_each = sum(module.get_parameter(n).shape[1] for n in adapters.names(module) if adapters.MATRIX_A in n)
    results = train_federated(config, *alone(config, module, SHARDS))[-1]
    assert results["bytes.down"] == results["bytes.up"] == 4 * 6 * row_of_each


def test_under_masks_a_site_sends_as_much_whatever_its_rank() -> None:
    absent = []
    for masked in (False, True):
        config = Config.from_mapping(KEYS | {"lora_ranks": [1, 3], "secure_aggregation": masked})
        module = builders.bert()
        base.freeze(module, config)
        absent.append(lora_ranks.num_absent(config, Layout(module), 1))
    per_rank = sum(module.get_parameter(name).numel() for name in adapters.names(module)) // 3
    assert absent == [2 * per_rank, 0]


def final_digest(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config) -> str:
    torch.set_num_threads(1)
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = builders.worker(folder, config, module, SHARDS, rank, num_workers, memory)
    train_federated(config, worker_sites, collectives, state)
    found = digest(state.params)
    collectives.close()
    return found


@pytest.mark.parametrize(
    "how", ["stack", *(pytest.param(other, marks=pytest.mark.thorough) for other in ("exact", "svd"))]
)
def test_the_result_does_not_depend_on_the_workers(run_distributed: Any, tmp_path: Path, how: str) -> None:
    more = {"lora_delta_rank": 4} if how == "stack" else {}
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "lora_ranks": [2, 3]} | more)
    builders.resident(tmp_path, config, builders.bert())
    (one,) = run_distributed(final_digest, 1, config)
    assert run_distributed(final_digest, 2, config) == [one, one]
    assert run_distributed(final_digest, 3, config) == [one, one, one]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora_aggregation": "exact", "server_momentum": 0.9}, "exact server_momentum=0.9: it starts from the adapters"),
        ({"lora_aggregation": "stack", "keep_optimiser": True}, "stack keep_optimiser=True: adapters begin anew"),
        ({"lora_aggregation": "svd", "server_learning_rate": 0.5}, "svd server_learning_rate=0.5: it"),
        ({"lora_aggregation": "share_a", "personal": "head"}, "share_a personal=head: B and the head stay"),
        ({"lora_aggregation": "stack", "download": "int8"}, "stack download=int8: it starts from the adapters of each site as"),
        ({"lora_rank": 0}, "lora_rank=0: expected"),
        ({"lora_aggregation": "share_a", "generate_examples": 2}, "generate_examples=2: .* has no global model, which would"),
        ({"baseline": "local_only", "generate_examples": 1}, "generate_examples=1: baseline=local_only has no global model"),
        ({"lora_ranks": [1, 4]}, "lora_ranks=1,4: lora_rank=3 is the largest .* set lora_rank=4"),
        ({"lora_ranks": [1, 2], "ditto_lambda": 0.1, "site_test": "held_back"}, "lora_ranks ditto_lambda=0.1: it would move .* leave out lora_ranks"),
        ({"lora_aggregation": "alternate", "lora_ranks": [1]}, "alternate lora_ranks="),
        ({"lora_ranks": [1, 2], "upload": "topk"}, "lora_ranks upload=topk: it would move the parameters beyond"),
        ({"lora_ranks": [1, 2], "download": "int8"}, "lora_ranks download=int8: it would move the parameters beyond"),
        ({"lora_delta_rank": 2}, "lora_delta_rank=2: belongs to lora_aggregation=exact or stack"),
        ({"lora_ranks": [0]}, r"lora_ranks=.*expected whole numbers such as \[4,8,16\], 1 or more"),
    ],
)  # fmt: skip
def test_keys_that_contradict_each_other_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_mapping(KEYS | more)
