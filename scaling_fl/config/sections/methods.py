"""Keys of methods: how the sites' deltas are combined, and how the server applies the result."""

from dataclasses import dataclass
from typing import Any

from scaling_fl.config.key import ABOVE_0, NOT_NEGATIVE, key, one_of

SERVER_OPTIMISERS = ("sgd", "adam", "yogi", "adagrad")
WEIGHTINGS = ("examples", "uniform", "sqrt", "tokens")
_BELOW_1: dict[str, Any] = {"expected": "a number from 0 to below 1", "valid": lambda value: 0 <= value < 1}


@dataclass(frozen=True)
class MethodKeys:
    """Methods."""

    weighting: str = key(
        "examples",
        "a site's weight in the mean of the deltas: its examples, uniform (all the same), sqrt (the square root of its "
        "examples) or tokens (those that a language model predicts of its examples)",
        **one_of(WEIGHTINGS),
    )
    fednova: bool = key(
        False, "True: FedNova: deltas are averaged per local step, for sites that make unequal numbers of SGD steps"
    )
    fairness_q: float = key(
        0.0,
        "q-FFL: q, how much more a site counts at which the server's model has a larger loss; 0: FedAvg",
        **NOT_NEGATIVE,
    )
    proximal_mu: float = key(
        0.0,
        "FedProx: μ, the strength with which a site's parameters are pulled towards the server's",
        **NOT_NEGATIVE,
    )
    feddyn_alpha: float = key(
        0.0,
        "FedDyn: α, the strength of each site's dynamic regulariser",
        **NOT_NEGATIVE,
    )
    scaffold: str | None = key(
        None,
        "SCAFFOLD: sites correct their gradients by control variates, which are renewed by option I (a pass over the whole "
        "shard) or II (from the local steps)",
        **one_of(("I", "II")),
    )
    server_optimiser: str = key(
        "sgd",
        "optimiser that applies the mean delta: sgd (FedAvg; with `server_momentum`, FedAvgM), adam, yogi or adagrad "
        "(FedAdam, FedYogi, FedAdagrad)",
        **one_of(SERVER_OPTIMISERS),
    )
    server_learning_rate: float | None = key(
        None, "learning rate of the server optimiser; default: 1 for sgd, otherwise 0.001", **ABOVE_0
    )
    server_momentum: float | None = key(
        None, "momentum of the server optimiser; default: 0.9 for adam and yogi, otherwise 0", **_BELOW_1
    )
    server_nesterov: bool = key(
        False, "True: Nesterov's momentum, for `server_optimiser=sgd`; DiLoCo's outer step with `server_momentum=0.9`"
    )
    server_beta2: float | None = key(
        None, "decay of the second moment, for `server_optimiser=adam` or `yogi`; default: 0.99", **_BELOW_1
    )
    server_tau: float | None = key(
        None, "adaptivity τ, for `server_optimiser=adam`, `yogi` or `adagrad`; default: 0.001", **ABOVE_0
    )
    exact_sum: bool = key(
        True,
        "True: deltas are summed in fixed point, so the result doesn't depend on which process trains which site; False: in "
        "floating point",
    )
