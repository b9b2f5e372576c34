"""What differential privacy promises in a job: the noise that it needs, ε after each round, and what ε holds for."""

import dataclasses
import functools

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import cohort
from scaling_fl.federated.privacy.accountant import Accountant, solve_noise_multiplier

MOST = 100.0  # an ε above it protects nobody, and PLD would take long to compute it
_LIMIT = 2.0**14  # of a delta in fixed point: distributed/weighted_sum.py
_MAX_STANDARD_DEVIATIONS = 10  # no value of any noise is further from 0


def noise_multiplier(config: Config, num_sites: int) -> float | None:
    """z, as given or solved for. Raises `UserError` if it can't be used."""
    if config.dp_clip is None:
        return None
    q = cohort.probability(config, num_sites)
    z = config.dp_noise_multiplier
    if z is None:
        z = solve_noise_multiplier(config, q)
    if config.dp_clip >= largest_clip(z, q):
        raise UserError(
            f"dp_clip={config.dp_clip:g}: with noise of {z:g} times its length, sums get too large; lower it"
        )
    if config.dp_clip_quantile is not None and config.dp_count_noise is not None and config.dp_count_noise <= z / 2:
        raise UserError(
            f"dp_count_noise={config.dp_count_noise:g}: must be above half of the noise multiplier {z:.3g}; raise it, or "
            "leave it out"
        )
    return z


def largest_clip(noise_multiplier: float, sampling_probability: float) -> float:
    """The bound of every clip: noise of a larger one might not fit into the sum of the round."""
    return _LIMIT / max(_MAX_STANDARD_DEVIATIONS * noise_multiplier, 1 / sampling_probability)


def after(config: Config, num_sites: int, round_: int) -> dict[str, float]:
    """ε after a round, as metrics, for a configuration with a noise multiplier: by RDP, and by PLD if it isn't large."""
    assert config.dp_noise_multiplier is not None
    assert config.dp_delta is not None
    rdp, pld = _accountants(cohort.probability(config, num_sites), config.dp_noise_multiplier)
    found = {"dp.epsilon_rdp": rdp.epsilon(round_, config.dp_delta)}
    if found["dp.epsilon_rdp"] <= MOST:
        found["dp.epsilon_pld"] = pld.epsilon(round_, config.dp_delta)
    # The last digits depend on how many rounds were added at a time, which a resume changes.
    return {name: float(f"{epsilon:.6g}") for name, epsilon in found.items()}


@functools.lru_cache(maxsize=1)  # so that each round adds to those before
def _accountants(q: float, z: float) -> tuple[Accountant, Accountant]:
    return Accountant("rdp", q, z), Accountant("pld", q, z)


def notes(config: Config, num_sites: int, multiplier: float | None) -> list[str]:
    """What the console says before the first round. `multiplier`: of `noise_multiplier`."""
    if config.secure_aggregation:
        return [
            "secure_aggregation=True simulates the protocol: all secrets are drawn in one place, so it protects nobody"
        ]
    if multiplier is None:
        return []
    q_below_1 = cohort.probability(config, num_sites) < 1
    resolved = dataclasses.replace(config, dp_noise_multiplier=multiplier)
    epsilon = after(resolved, num_sites, config.num_rounds)
    rdp, pld = epsilon["dp.epsilon_rdp"], epsilon.get("dp.epsilon_pld")
    bound = f"ε = {rdp:.3g} (RDP), which protects nobody," if pld is None else f"ε = {pld:.3g} (PLD; {rdp:.3g} by RDP)"
    said = [
        f"differential privacy: noise multiplier {multiplier:.4g}; after all {config.num_rounds} rounds {bound} at "
        f"δ = {config.dp_delta:g}, for the presence of any one site, against anyone who sees all global models but neither "
        "seed, cohorts nor single sites' metrics"
    ]
    if q_below_1 and config.seed == Config.seed:
        said.append(
            f"seed={config.seed} is the default, which everyone knows, and who takes part follows from it: ε holds only with "
            "a seed of your own that you keep secret"
        )
    if config.dp_seed is not None:
        said.append(f"dp_seed={config.dp_seed}: the noise can be drawn again, so this job protects nobody")
    return said
