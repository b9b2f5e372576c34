"""FedNova: Wang et al. 2020, algorithm 1, for sites that make unequal numbers of local SGD steps.

Site i's delta is Σ_s a_is × (learning rate × gradient of step s). The server averages deltas per unit of ‖a_i‖₁ and steps
as far as the mean site:

    x ← x − τ_eff Σ p_i delta_i / ‖a_i‖₁,   τ_eff = Σ p_i ‖a_i‖₁

p_i is the site's share as `weighting` says; the paper's is that of its examples. ‖a_i‖₁ is the number of steps for plain
SGD. With FedProx's μ, earlier steps are damped: a_is = Π (1 − η_r μ) over the later steps r. If all sites make the same
steps this is FedAvg.
"""

from collections.abc import Mapping

from scaling_fl.config.schema import Config
from scaling_fl.federated.lr_schedule import learning_rate


def weights(shares: Mapping[int, float], steps: Mapping[int, float]) -> tuple[dict[int, float], float]:
    """The weights of sites with the shares p_i and ‖a_i‖₁ = `steps`, which sum to 1, and the scale of their mean."""
    per_step = {site: share / steps[site] for site, share in shares.items()}
    total = sum(per_step.values())
    effective = sum(share * steps[site] for site, share in shares.items())
    return {site: value / total for site, value in per_step.items()}, effective * total


def effective_steps(config: Config, round_: int, steps: int) -> float:
    """‖a_i‖₁ of a site that makes `steps` steps in a round, in steps at `config.learning_rate`."""
    if config.proximal_mu == 0 and config.lr_schedule == "constant" and config.warmup == 0:
        return steps  # at once: a cohort may have thousands of sites
    total = 0.0
    for step in range(steps):
        rate = learning_rate(config, round_, (step + 0.5) / steps)
        total = total * (1 - rate * config.proximal_mu) + rate / config.learning_rate
    return total
