"""Secure aggregation: masks cancel exactly, drop-outs are recovered of shares, and no message says anything of a delta."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed
from scaling_fl.federated import aggregation, compression, rounds
from scaling_fl.federated.aggregation import secure
from scaling_fl.federated.privacy import masks, shamir
from scaling_fl.federated.server import SGD
from scaling_fl.models.flat_parameters import Layout
from tests import builders

SHARDS = [np.sort(part) for part in np.split(np.random.default_rng(8).permutation(40), [1, 4, 9, 15, 18, 27])]
KEYS: dict[str, Any] = {
    "num_sites": 7,
    "site_ids": [-1],
    "num_rounds": 2,
    "batch_size": 8,
    "learning_rate": 0.02,
    "seed": 2,
}


@pytest.mark.parametrize(("count", "threshold"), [(5, 3), (4, 4), (3, 1)])
def test_any_t_shares_give_the_secret_and_fewer_give_another_value(count: int, threshold: int) -> None:
    secret = 123456789**7 % shamir.PRIME
    shares = shamir.split(secret, list(range(1, count + 1)), threshold)
    for chosen in itertools.combinations(shares, threshold):
        assert shamir.reconstruct({holder: shares[holder] for holder in chosen}) == secret
    for chosen in itertools.combinations(shares, threshold - 1):
        assert not chosen or shamir.reconstruct({holder: shares[holder] for holder in chosen}) != secret


def test_fewer_shares_fit_every_secret() -> None:
    """With t − 1 shares, each value of the secret is the value at 0 of one polynomial: here for a secret that they don't hold."""
    shares = shamir.split(42, [1, 2, 3], 3)
    for guess in (0, 7, shamir.PRIME - 1):
        third = shamir.reconstruct({0 - 3: guess, 1 - 3: shares[1], 2 - 3: shares[2]})  # the value at 3, shifted to 0
        assert shamir.reconstruct({1: shares[1], 2: shares[2], 3: third}) == guess


def test_secrets_are_drawn_anew_and_too_long_to_be_tried() -> None:
    found = []
    for _ in range(2):
        of_round = masks.draw(range(8), 5)
        found += [of_round.own_secret(site, range(8)) for site in range(8)]
        found += [of_round.pair_secret(*pair, range(8)) for pair in itertools.combinations(range(8), 2)]
    assert len(set(found)) == 2 * (8 + 28)
    assert 2**244 < max(found) < 2**248 < shamir.PRIME
    assert sum(secret.bit_count() for secret in found) / len(found) == pytest.approx(124, abs=7 * (62 / 72) ** 0.5)


def test_the_coefficients_of_the_shares_are_drawn_from_the_whole_field() -> None:
    """Of t = 2 shares, share − secret is the one coefficient times the holder: short ones would narrow the secret down."""
    secret = shamir.PRIME // 3
    drawn = [(shamir.split(secret, [1], 2)[1] - secret) % shamir.PRIME for _ in range(200)]
    assert len(set(drawn)) == 200
    for tenth in range(10):
        within = sum(tenth * shamir.PRIME <= 10 * value < (tenth + 1) * shamir.PRIME for value in drawn)
        assert 1 <= within <= 60, "of 200, with a probability below 1e-8 of more or fewer"


def messages(values: list[np.ndarray], of_round: masks.Secrets) -> list[np.ndarray]:
    masked = [value.copy() for value in values]
    for site, value in zip(of_round.sites, masked, strict=True):
        masks.add_masks(value, site, of_round)
    return masked


@pytest.mark.parametrize("dropped", [set(), {3}, {0, 9}])
def test_masks_cancel_modulo_2_to_the_64(monkeypatch: pytest.MonkeyPatch, dropped: set[int]) -> None:
    monkeypatch.setattr(masks, "_CHUNK", 100)
    rng = np.random.default_rng(3)
    sites = [0, 3, 4, 9, 12]
    values = [rng.integers(-(2**61), 2**61, 250) for _ in sites]
    of_round = masks.draw(sites, 3)
    sent = [site for site in sites if site not in dropped]
    masked = dict(zip(sites, messages(values, of_round), strict=True))
    total = np.sum([masked[site] for site in sent], axis=0)
    plain = np.sum([value for site, value in zip(sites, values, strict=True) if site in sent], axis=0)
    assert not np.array_equal(total, plain)
    masks.remove_masks(total, of_round, sent, sites)
    assert np.array_equal(total, plain)


def test_too_few_shares_unmask_nothing() -> None:
    of_round = masks.draw([0, 1, 2, 3], 3)
    with pytest.raises(ValueError, match="2 shares are fewer than the threshold 3"):
        masks.remove_masks(np.zeros(5, np.int64), of_round, [0, 1], [0, 1, 2, 3])


def test_a_single_message_is_uniform_whatever_the_delta() -> None:
    """Bytes of a message of zeros, and of one of large equal values, are uniform; so is what remains without one mask."""
    count = 40_000
    for delta in (np.zeros(count, np.int64), np.full(count, 2**60)):
        of_round = masks.draw([0, 1, 2], 2)
        message = delta.copy()
        masks.add_masks(message, 1, of_round)
        without_own = message.copy()
        masks.add(without_own, of_round.own_secret(1, [0, 1, 2]), -1)
        for seen in (message, without_own):
            counts = np.bincount(seen.view(np.uint8), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-6
            assert (seen == delta).sum() == 0
            assert abs(np.corrcoef(seen[:-1].astype(float), seen[1:].astype(float))[0, 1]) < 5 / np.sqrt(count)


def test_a_mask_never_repeats_within_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the difference of two values of a delta would be in the open; the generator is called for 100 at a time here."""
    monkeypatch.setattr(masks, "_CHUNK", 100)
    message = np.zeros(350, np.int64)
    masks.add(message, 12345, 1)
    assert len(np.unique(message)) == 350
    other = np.zeros(350, np.int64)
    masks.add(other, 12346, 1)
    assert not set(message.tolist()) & set(other.tolist())


def test_messages_of_two_rounds_have_nothing_in_common() -> None:
    delta = np.arange(1000)
    first, second = (messages([delta, delta], masks.draw([0, 1], 2))[0] for _ in range(2))
    assert (first == second).sum() == 0


def final(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config) -> np.ndarray:
    torch.set_num_threads(1)
    worker_sites, collectives, state = builders.worker(
        folder, config, builders.bert(), SHARDS, rank, num_workers, memory
    )
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda *_: None)
    collectives.close()
    return state.params.numpy().copy()


def test_a_job_is_bitwise_the_same_with_masks_by_any_number_of_workers(run_distributed: Any, tmp_path: Path) -> None:
    plain = Config.from_mapping(KEYS | {"sites_per_round": 5})
    masked = Config.from_mapping(KEYS | {"sites_per_round": 5, "secure_aggregation": True})
    builders.resident(tmp_path, plain, builders.bert())
    (expected,) = run_distributed(final, 1, plain)
    for num_workers in (1, 3):
        for params in run_distributed(final, num_workers, masked):
            assert np.array_equal(params, expected)


def test_the_mean_is_over_the_sites_that_have_sent(alone: Callable[..., Any]) -> None:
    """Weighted by their examples alone; buffers that aren't trained, too."""
    config = Config.from_mapping(KEYS | {"secure_aggregation": True, "secure_dropout": 0.3, "secure_threshold": 3})
    module = builders.bert()
    module.bert.embeddings.requires_grad_(False)
    worker_sites, collectives, state = alone(config, module, SHARDS)
    combination = aggregation.begin(worker_sites, collectives, state, 1)
    dropped = secure.dropouts(config, list(range(7)), 1)
    assert 1 <= len(dropped) <= 4
    for site in worker_sites.participants(1):
        combination.add(site.number, torch.full((len(state.row),), float(site.number**2 + 1)))
    found = torch.cat([delta.clone() for _, delta in combination.combined()])
    left = [site for site in range(7) if site not in dropped]
    expected = sum(len(SHARDS[site]) * (site**2 + 1) for site in left) / sum(len(SHARDS[site]) for site in left)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_a_worker_whose_sites_all_drop_out_adds_nothing(run_distributed: Any, tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS | {"secure_aggregation": True, "secure_dropout": 0.5, "secure_threshold": 1})
    builders.resident(tmp_path, config, builders.bert())
    (expected,) = run_distributed(final, 1, config)
    for params in run_distributed(final, 7, config):
        assert np.array_equal(params, expected)


def test_drop_outs_are_drawn_anew_in_each_round_by_the_seed() -> None:
    """Each site by itself, with the given probability: a quarter of 50 rounds × 40 sites."""
    sites = list(range(40))

    def drawn(seed: int) -> list[frozenset[int]]:
        config = Config.from_mapping(KEYS | {"secure_aggregation": True, "secure_dropout": 0.25, "seed": seed})
        return [secure.dropouts(config, sites, round_) for round_ in range(1, 51)]

    found = drawn(2)
    assert found == drawn(2)
    assert len(set(found)) == 50
    assert not set(found) & set(drawn(3))
    share = sum(map(len, found)) / (50 * 40)
    assert share == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / 2000) ** 0.5)
    by_site = [sum(site in of_round for of_round in found) for site in sites]
    assert 0 < min(by_site) < max(by_site) < 50


@pytest.mark.parametrize(("sites", "least"), [(1, 1), (2, 2), (3, 2), (4, 3), (6, 4), (7, 5)])
def test_two_thirds_of_the_sites_unmask_the_sum_unless_the_key_says_otherwise(sites: int, least: int) -> None:
    assert secure.threshold(Config(), sites) == least
    assert secure.threshold(Config(secure_threshold=1), sites) == 1


def test_a_round_below_the_threshold_is_refused(alone: Callable[..., Any]) -> None:
    config = Config.from_mapping(KEYS | {"secure_aggregation": True, "secure_dropout": 0.9})
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    left = 7 - len(secure.dropouts(config, list(range(7)), 1))
    with pytest.raises(
        JobFailed, match=f"round 1: {left} of 7 sites are left, fewer than the 5 whose shares unmask the sum"
    ):
        aggregation.begin(worker_sites, collectives, state, 1)


def test_the_protocols_bytes_by_hand() -> None:
    """Four sites, 1,000 values: keys of 32 bytes, sealed shares of 48, 64-bit sums, shares of 32 bytes."""
    down, up = masks.num_bytes(4, 1000)
    assert down == 3 * 2 * 32 + 3 * 2 * 48
    assert up == 2 * 32 + 3 * 2 * 48 + 4 * 1000 + 4 * 32
    module = builders.bert()
    module.register_buffer("seen", torch.zeros(5))  # which travels in the sum, too
    layout = Layout(module)
    plain = compression.traffic(Config(), layout, 0, 4)
    size = plain[0] // 4
    more = masks.num_bytes(4, size)
    assert compression.traffic(Config(secure_aggregation=True), layout, 0, 4) == (
        plain[0] + more[0],
        plain[1] + more[1],
    )


def test_a_site_that_drops_out_sends_keys_and_shares_alone(alone: Callable[..., Any]) -> None:
    config = Config.from_mapping(KEYS | {"secure_aggregation": True, "secure_dropout": 0.3, "secure_threshold": 2})
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    combination: Any = aggregation.begin(worker_sites, collectives, state, 1)
    gone = len(combination.dropped)
    assert 0 < gone < 7
    values = compression.traffic(Config(), worker_sites.resident.model.layout, 0)[1] // 4
    of_all = 2 * 32 + 6 * 2 * 48
    assert combination.results == {"bytes.up": 7 * of_all + (7 - gone) * (8 * values + 7 * 32)}
