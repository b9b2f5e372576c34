"""How sites' adapters become one: against dense matrices, on unequal sites."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError
from scaling_fl.federated import aggregation, cohort
from scaling_fl.federated.aggregation import lora_error
from scaling_fl.federated.compression import traffic
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.site import Site
from scaling_fl.models import adapters, base
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.models.selection import personal_positions
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import SHARDS, by_name, loss, model, train_federated, trained_names

KEYS = {
    "num_sites": 3, "num_rounds": 4, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.05, "seed": 4,
    "trainable": "lora", "lora_rank": 3,
}  # fmt: skip
SIZES = [len(shard) for shard in SHARDS]


def trained_in(config: Config, round_: int) -> Callable[[str], bool]:
    """Which tensors sites train in a round."""
    resting = {"separate": "nothing", "freeze_a": ".lora_A.", "alternate": ".lora_A." if round_ % 2 else ".lora_B."}
    return lambda name: resting[config.lora_aggregation] not in name


@pytest.mark.parametrize("how", ["separate", "freeze_a", "alternate"])
@pytest.mark.parametrize("more", [{}, {"sites_per_round": 2, "proximal_mu": 0.5}])
def test_sites_train_what_the_method_says(alone: Callable[..., Any], how: str, more: dict[str, Any]) -> None:
    """By a plain loop that sets `requires_grad` in each round."""
    config = Config.from_mapping(KEYS | {"lora_aggregation": how} | more)
    module = model(config)
    start, plain = copy.deepcopy(module), copy.deepcopy(module)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)

    ever = trained_names(plain)
    for round_ in range(1, config.num_rounds + 1):
        chosen = trained_in(config, round_)
        cohort_ = [site.number for site in worker_sites.participants(round_)]
        mean = {name: torch.zeros_like(plain.get_parameter(name)) for name in ever}
        for site in cohort_:
            local = copy.deepcopy(plain).train()
            for name, parameter in local.named_parameters():
                parameter.requires_grad_(name in ever and chosen(name))
            active = [p for p in local.parameters() if p.requires_grad]
            optimiser = torch.optim.SGD(active, lr=config.learning_rate)
            for indices in local_batches(config, resident.train, SHARDS[site], round_, site):
                optimiser.zero_grad()
                loss(resident, local, indices, config.proximal_mu, plain).backward()
                optimiser.step()
            share = SIZES[site] / sum(SIZES[other] for other in cohort_)
            for name in ever:
                mean[name] += share * local.get_parameter(name).detach()
        with torch.no_grad():
            for name in ever:
                plain.get_parameter(name).copy_(mean[name])
    # Products of random matrices amplify rounding: over five seeds up to 2 × 10⁻⁵, on other processors ten times more.
    assert_same_movement(by_name(resident, state.params), plain, start, share=1e-3)


@pytest.mark.parametrize(("how", "exact"), [("separate", False), ("freeze_a", True), ("alternate", True)])
def test_the_mean_of_products_is_the_product_of_means_if_one_matrix_rests(
    alone: Callable[..., Any], how: str, exact: bool
) -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "num_rounds": 2})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    train_federated(config, worker_sites, collectives, state)  # two rounds, so that B isn't 0
    before, shares = state.params.clone(), [size / sum(SIZES) for size in SIZES]
    name = "bert.encoder.layer.0.output.dense"
    a, b = (f"{name}.lora_{factor}.default.weight" for factor in "AB")
    products, means = torch.zeros(()), {a: torch.zeros(()), b: torch.zeros(())}
    for site, share in enumerate(shares):
        delta, _ = Site(site, SHARDS[site], resident).train(before, 3)
        own = by_name(resident, before - delta[: len(before)])
        products = products + share * own[b] @ own[a]
        means = {key: mean + share * own[key] for key, mean in means.items()}
    difference = (products - means[b] @ means[a]).norm() / products.norm()
    assert (difference < 1e-6) == exact, difference


def test_frozen_matrices_do_not_travel() -> None:
    sent = {}
    for how in ("separate", "freeze_a"):
        config = Config.from_mapping(KEYS | {"lora_aggregation": how})
        module = builders.bert()
        base.freeze(module, config)
        sent[how] = traffic(config, Layout(module), 0)[1]
        of_a = sum(module.get_parameter(name).numel() for name in adapters.names(module) if ".lora_A." in name)
    assert sent["separate"] - sent["freeze_a"] == 4 * of_a > 0


@pytest.mark.parametrize(
    "more",
    [
        {"keep_optimiser": True}, {"weight_decay": 0.1}, {"feddyn_alpha": 0.1, "weighting": "uniform"},
        {"server_momentum": 0.9}, {"server_optimiser": "adam"}, {"dp_clip": 1.0, "dp_noise_multiplier": 0.1, "dp_delta": 1e-5, "weighting": "uniform"},
    ],
)  # fmt: skip
def test_what_would_move_a_resting_matrix_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"lora_aggregation=alternate \w+=.*: it would move the matrix that rests"):
        Config.from_mapping(KEYS | {"lora_aggregation": "alternate"} | more)


def test_what_an_upload_left_out_is_not_sent_while_the_matrix_rests() -> None:
    keys = KEYS | {"lora_aggregation": "alternate", "upload": "topk"}
    with pytest.raises(UserError, match=r"alternate upload=topk: what is left out is sent .* set error_feedback=False"):
        Config.from_mapping(keys)
    Config.from_mapping(keys | {"error_feedback": False})


def dense_error(resident: Any, states: list[torch.Tensor], shares: list[float]) -> float:
    """By its definition, from dense matrices of all layers."""
    wrong = whole = 0.0
    sites = [by_name(resident, state) for state in states]
    for name in sites[0]:
        if ".lora_A.default." in name:
            pairs = [(site[name.replace(".lora_A.", ".lora_B.")].double(), site[name].double()) for site in sites]
            product = sum(share * b @ a for share, (b, a) in zip(shares, pairs, strict=True))
            b, a = (sum(share * pair[kind] for share, pair in zip(shares, pairs, strict=True)) for kind in (0, 1))
            wrong += float((product - b @ a).square().sum())
            whole += float(product.square().sum())
    return (wrong / whole) ** 0.5


@pytest.mark.parametrize(
    ("how", "zero"),
    [
        ("separate", False), ("freeze_a", True), ("alternate", True), ("share_a", False), ("exact", False), ("stack", False),
        ("svd", False),
    ],
)  # fmt: skip
def test_the_error_of_averaging_factors_is_logged(
    alone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, how: str, zero: bool
) -> None:
    """With many probes, it is the error of the dense products, in a round whose cohort isn't all sites."""
    monkeypatch.setattr(lora_error, "_PROBES", 400)
    config = Config.from_mapping(KEYS | {"lora_aggregation": how, "num_rounds": 2, "sites_per_round": 2})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    resident = worker_sites.resident
    results = train_federated(config, worker_sites, collectives, state)
    assert results[1]["lora.product_error"] < 1, "B is 0 before the first round"
    assert "lora.product_error" not in results[0]
    before, cohort_ = state.params.clone(), [site.number for site in worker_sites.participants(3)]
    combination: Any = aggregation.begin(worker_sites, collectives, state, 3)
    states, shares = [], [SIZES[site] / sum(SIZES[other] for other in cohort_) for site in cohort_]
    for site in worker_sites.participants(3):
        delta, _ = site.train(before, 3)
        own = before - delta[: len(before)]
        states.append(site.own_params(own) if config.personal else own)
        combination.add(site.number, delta)
    list(combination.combined())
    expected = dense_error(resident, states, shares)
    assert combination.results["lora.product_error"] == pytest.approx(0 if zero else expected, rel=0.1)
    assert (expected > 1e-3) != zero


def test_sites_count_as_a_whole_in_the_error_of_a_private_mean(alone: Callable[..., Any]) -> None:
    """Its own weights, of a fixed denominator, sum to 1 only in the mean, but the error isn't proportional to them."""
    private = {"dp_clip": 1.0, "dp_noise_multiplier": 0.5, "dp_delta": 1e-3, "weighting": "uniform"}
    config = Config.from_mapping(KEYS | private | {"sampling": "poisson", "participation": 0.6})
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    for round_ in range(1, 9):
        drawn = cohort.sample(config, SIZES, round_)
        watched = lora_error.watch(None, worker_sites, collectives, state, round_)
        assert watched.weights == pytest.approx({site: 1 / len(drawn) for site in drawn})


def error_of(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config) -> Any:
    torch.set_num_threads(1)
    module = builders.bert(dropout=0.0)
    base.freeze(module, config)
    worker_sites, collectives, state = builders.worker(folder, config, module, SHARDS, rank, num_workers, memory)
    results = train_federated(config, worker_sites, collectives, state)
    collectives.close()
    return [r.get("lora.product_error") for r in results]


def test_the_logged_error_does_not_depend_on_the_workers(run_distributed: Any, tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS)
    builders.resident(tmp_path, config, builders.bert())
    (one,) = run_distributed(error_of, 1, config)
    assert run_distributed(error_of, 2, config)[0] == one
    assert all(0 < error < 1 for error in one[1:])


def test_share_a_leaves_b_and_the_head_at_the_sites() -> None:
    config = Config.from_mapping(KEYS | {"lora_aggregation": "share_a", "site_test": "held_back"})
    module = builders.bert()
    base.freeze(module, config)
    layout = Layout(module)
    at = set(personal_positions(layout, str(config.personal)).tolist())
    for name, start, shape in layout.entries:
        stays = ".lora_A." not in name
        assert (set(range(start, start + shape.numel())) <= at) == stays, name
    assert Config.from_mapping(config.to_mapping()) == config
