"""What the rounds so far reveal of a site: ε at a given δ, by the package dp-accounting, an optional dependency.

Two data sets are neighbours if one has one site more. In a round each site takes part with probability q, independently
(q = 1: every site), and the sum has Gaussian noise of z times a site's largest influence. RDP (Mironov 2017) and PLD
(privacy loss distributions: Koskela et al. 2020) both bound ε; PLD's bound is tighter.
"""

from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError

_PACKAGE = "dp-accounting"
_INTERVAL = 1e-3  # of PLD's discretisation, which rounds ε up: by 1.4 % after 10,000 rounds, but less after fewer


class Accountant:
    """Counts rounds of one mechanism."""

    def __init__(self, kind: str, sampling_probability: float, noise_multiplier: float):
        """`kind`: rdp or pld."""
        self._make, self._event = _KINDS[kind], _event(sampling_probability, noise_multiplier)
        self._accountant, self._rounds = self._make(), 0

    def epsilon(self, rounds: int, delta: float) -> float:
        """ε after `rounds`. Only those since the last call are added."""
        if rounds < self._rounds:
            self._accountant, self._rounds = self._make(), 0
        if rounds > self._rounds:
            self._accountant.compose(self._event, rounds - self._rounds)
            self._rounds = rounds
        return float(self._accountant.get_epsilon(delta)) if rounds else 0.0


def solve_noise_multiplier(config: Config, sampling_probability: float) -> float:
    """The least noise multiplier with which all rounds together have at most `dp_epsilon`, by PLD."""
    dp = _package()
    assert config.dp_epsilon is not None
    solved: float = dp.calibrate_dp_mechanism(
        _KINDS["pld"],
        lambda z: dp.SelfComposedDpEvent(_event(sampling_probability, z), config.num_rounds),
        config.dp_epsilon,
        config.dp_delta,
    )
    return solved


_KINDS = {
    "rdp": lambda: _package().rdp.RdpAccountant(),
    "pld": lambda: _package().pld.PLDAccountant(value_discretization_interval=_INTERVAL),
}


def _event(sampling_probability: float, noise_multiplier: float) -> Any:
    dp = _package()
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    return gaussian if sampling_probability == 1 else dp.PoissonSampledDpEvent(sampling_probability, gaussian)


def _package() -> Any:
    try:
        import absl.logging
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError(f"dp_clip needs the package {_PACKAGE}: ./run-local.sh -m pip install {_PACKAGE}") from error
    absl.logging.set_verbosity(absl.logging.ERROR)  # it warns of each order that doesn't help
    return dp_accounting
