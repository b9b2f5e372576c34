"""Epsilons that are known, the noise that they need, and the noise itself."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, stats

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.privacy import accountant, guarantee, noise
from scaling_fl.federated.privacy.accountant import Accountant
from tests.federated.test_privacy import KEYS


def gaussian_epsilon(z: float, steps: int, delta: float) -> float:
    """Of the composed Gaussian mechanism, exactly: Balle and Wang 2018, theorem 8, with sensitivity √steps / z."""
    mu = math.sqrt(steps) / z

    def excess(epsilon: float) -> float:
        phi = stats.norm.cdf
        return float(phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu) - delta)

    return float(optimize.brentq(excess, 0, 50))


@pytest.mark.parametrize(("z", "steps", "delta"), [(5.0, 20, 1e-3), (1.0, 1, 1e-5), (20.0, 1000, 1e-6)])
def test_without_sampling_pld_is_exact_and_rdp_a_little_above(z: float, steps: int, delta: float) -> None:
    exact = gaussian_epsilon(z, steps, delta)
    assert Accountant("pld", 1.0, z).epsilon(steps, delta) == pytest.approx(exact, rel=2e-3)
    assert exact < Accountant("rdp", 1.0, z).epsilon(steps, delta) < 1.25 * exact


def test_the_moments_accountants_published_example() -> None:
    """Abadi et al. 2016, section 3.2: q = 0.01, σ = 4, δ = 1e-5, 10,000 steps: ε ≈ 1.26, which later bounds improve."""
    pld, rdp = (Accountant(kind, 0.01, 4.0).epsilon(10_000, 1e-5) for kind in ("pld", "rdp"))
    assert 0.85 < pld < rdp < 1.26
    assert rdp > 1.0


def test_epsilon_grows_by_rounds_in_whatever_order_it_is_asked() -> None:
    counted = Accountant("pld", 0.5, 2.0)
    values = [counted.epsilon(rounds_, 1e-3) for rounds_ in (0, 1, 2, 5, 3)]
    assert values[0] == 0
    for rounds_, value in zip((1, 2, 5, 3), values[1:], strict=True):
        assert value == pytest.approx(Accountant("pld", 0.5, 2.0).epsilon(rounds_, 1e-3), rel=1e-6)
    assert values[1] < values[2] < values[4] < values[3]


@pytest.mark.parametrize("kind", ["pld", "rdp"])
def test_the_fewer_sites_take_part_the_less_is_spent(kind: str) -> None:
    spent = [Accountant(kind, q, 1.5).epsilon(6, 1e-3) for q in (0.1, 0.4, 0.6, 0.9, 1.0)]
    assert spent == sorted(spent)
    assert all(less < 0.97 * more for less, more in itertools.pairwise(spent))


def test_the_noise_is_solved_for_epsilon() -> None:
    config = Config.from_mapping(
        KEYS
        | {
            "dp_noise_multiplier": None,
            "dp_epsilon": 4.0,
            "num_rounds": 20,
            "sampling": "poisson",
            "participation": 0.5,
        }
    )
    z = guarantee.noise_multiplier(config, 7)
    assert z is not None
    spent = Accountant("pld", 0.5, z).epsilon(20, 1e-3)
    assert 3.9 < spent <= 4.0
    said = guarantee.notes(config, 7, z)
    assert f"after all 20 rounds ε = {spent:.3g} (PLD; " in said[0]
    assert said[-1] == "dp_seed=5: the noise can be drawn again, so this job protects nobody"
    assert len(guarantee.notes(dataclasses.replace(config, dp_seed=None), 7, z)) == 1
    zero = guarantee.notes(dataclasses.replace(config, dp_seed=0), 7, z)
    assert zero[-1].startswith("dp_seed=0: the noise can be drawn again")
    public = guarantee.notes(dataclasses.replace(config, dp_seed=None, seed=Config.seed), 7, z)
    assert "is the default, which everyone knows" in public[1]
    everyone = Config.from_mapping(KEYS | {"dp_noise_multiplier": 4.0, "dp_seed": None, "seed": Config.seed})
    assert len(guarantee.notes(everyone, 7, 4.0)) == 1, "no cohort follows from the seed"
    assert guarantee.noise_multiplier(Config(), 7) is None
    assert guarantee.notes(Config(), 7, None) == []
    assert "simulates the protocol" in guarantee.notes(Config(secure_aggregation=True), 7, None)[0]


def test_a_resumed_job_reports_the_epsilon_of_one_that_was_never_interrupted() -> None:
    """Bitwise, though it composes all earlier rounds at once: what is reported has six digits."""
    config = Config.from_mapping(
        KEYS | {"dp_noise_multiplier": 0.9, "num_rounds": 9, "sampling": "poisson", "participation": 0.3}
    )
    guarantee._accountants.cache_clear()
    one_by_one = [guarantee.after(config, 7, round_) for round_ in range(1, 8)]
    for round_, expected in enumerate(one_by_one, 1):
        guarantee._accountants.cache_clear()
        assert guarantee.after(config, 7, round_) == expected
        for epsilon in expected.values():
            assert len(f"{epsilon:.12g}".replace(".", "").strip("0")) <= 6
    assert guarantee.after(config, 7, 3) == one_by_one[2], "an earlier round, as after a restart"


def test_both_bounds_are_known_up_to_an_epsilon_of_100() -> None:
    config = Config.from_mapping(KEYS | {"dp_noise_multiplier": 0.7})
    seen = {}
    for rounds_ in (1, 9, 59, 62, 80):
        spent = guarantee.after(config, 7, rounds_)
        seen[spent["dp.epsilon_rdp"]] = "dp.epsilon_pld" in spent
    assert any(90 < epsilon <= 100 for epsilon in seen), seen
    assert any(100 < epsilon < 110 for epsilon in seen), seen
    assert all(known == (epsilon <= 100) for epsilon, known in seen.items())


def test_an_epsilon_that_protects_nobody_is_said_to_and_costs_no_time() -> None:
    config = Config.from_mapping(KEYS | {"dp_noise_multiplier": 0.01, "num_rounds": 500})
    assert guarantee.after(config, 7, 500).keys() == {"dp.epsilon_rdp"}
    assert "(RDP), which protects nobody, at δ = 0.001" in guarantee.notes(config, 7, 0.01)[0]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dp_clip": 3000.0}, r"dp_clip=3000: with noise of 0\.7 times its length, sums get too large; lower it"),
        (
            {"dp_clip_quantile": 0.5, "dp_count_noise": 0.35},
            r"dp_count_noise=0\.35: must be above half of .* 0\.7; raise",
        ),
    ],
)
def test_noise_that_cannot_be_used_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        guarantee.noise_multiplier(Config.from_mapping(KEYS | keys), 7)


@pytest.mark.parametrize(("clip", "refused"), [(160.0, False), (163.84, True), (170.0, True), (1000.0, True)])
def test_a_clip_that_a_small_share_of_sites_makes_too_large_is_refused(clip: float, refused: bool) -> None:
    """2^14 / 100 = 163.84: each of one site in a hundred counts a hundred times."""
    config = Config.from_mapping(KEYS | {"dp_clip": clip, "sampling": "poisson", "participation": 0.01})
    if not refused:
        assert guarantee.noise_multiplier(config, 7) == 0.7
        return
    with pytest.raises(UserError, match=rf"dp_clip={clip:g}: with noise of 0\.7 times its length, sums get too large"):
        guarantee.noise_multiplier(config, 7)


def test_without_the_package_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dp_accounting", None)
    with pytest.raises(UserError, match=r"dp_clip needs the package dp-accounting: ./run-local.sh -m pip install"):
        accountant.Accountant("pld", 0.5, 1.0)


def test_the_systems_noise_is_normal_and_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = noise.gaussian(300_001, None, 1), noise.gaussian(300_001, None, 1)
    assert not torch.equal(first, second)
    for values in (first, second):
        assert stats.kstest(values.numpy(), "norm").pvalue > 1e-6
        assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 5 / math.sqrt(300_000)
    halves = first[:150_000], first[150_001:]  # the sine of pair k stands 150,001 places after its cosine
    assert abs(np.corrcoef(*halves)[0, 1]) < 5 / math.sqrt(150_000), "sine and cosine of a pair are independent"
    at_once = noise.gaussian(2500, 7, 3)
    monkeypatch.setattr(noise, "_CHUNK", 1000)
    assert torch.equal(noise.gaussian(2500, 7, 3), at_once)
    assert not torch.equal(noise.gaussian(2500, 7, 3), noise.gaussian(2500, 7, 4))
    assert torch.equal(noise.gaussian(2500, 0, 3), noise.gaussian(2500, 0, 3)), "0 is a seed, too"
    assert len(noise.gaussian(1, None, 1)) == 1


def test_the_rarest_bytes_of_the_system_give_finite_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest clip counts on it: no noise is more than ten standard deviations from 0."""
    for byte, longest in ((b"\0", math.sqrt(2 * 53 * math.log(2))), (b"\xff", 0.0)):
        monkeypatch.setattr(noise.os, "urandom", lambda count, byte=byte: byte * count)
        values = noise.gaussian(6, None, 1)
        assert values.abs().max().item() == pytest.approx(longest)
        assert longest < guarantee._MAX_STANDARD_DEVIATIONS
