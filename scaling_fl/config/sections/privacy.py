"""Keys of privacy: secure aggregation, and differential privacy at the level of sites."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, SEED, at_least, key


@dataclass(frozen=True)
class PrivacyKeys:
    """Privacy."""

    secure_aggregation: bool = key(
        False,
        "True: a simulation of secure aggregation: the server sums masked deltas; the result is bitwise the same, and the "
        "metrics `bytes.…` count what the protocol costs",
    )
    secure_threshold: int | None = key(
        None,
        "number of sites of a round whose shares unmask the sum; a round with fewer is refused; default: two thirds of them",
        **at_least(1),
        may_change=True,
    )
    secure_dropout: float = key(
        0.0,
        "probability that a site drops out after it has shared its secrets, for studies of secure aggregation",
        "a number from 0 to below 1",
        lambda probability: 0 <= probability < 1,
    )
    dp_clip: float | None = key(
        None,
        "differential privacy (DP-FedAvg): the length that each site's delta is clipped to; default: no privacy",
        **ABOVE_0,
    )
    dp_noise_multiplier: float | None = key(
        None, "standard deviation of the noise on the sum of the deltas, in units of `dp_clip`", **ABOVE_0
    )
    dp_epsilon: float | None = key(
        None,
        "ε of all rounds together, in the place of `dp_noise_multiplier`, which is then solved for",
        "a number above 0, up to 50",
        lambda epsilon: 0 < epsilon <= 50,
    )
    dp_delta: float | None = key(
        None,
        "δ of the privacy guarantee; far below 1 / number of sites",
        "a number above 0, below 1",
        lambda delta: 0 < delta < 1,
    )
    dp_clip_quantile: float | None = key(
        None,
        "adaptive clipping: the clip follows this quantile of the deltas' lengths, from `dp_clip` on; 0.5: the median",
        "a number from 0 to 1",
        lambda quantile: 0 <= quantile <= 1,
    )
    dp_clip_rate: float = key(0.2, "adaptive clipping: the rate at which the clip moves", **ABOVE_0)
    dp_count_noise: float | None = key(
        None,
        "adaptive clipping: standard deviation of the noise on the number of deltas that aren't clipped; default: a twentieth "
        "of the expected sites of a round, or `dp_noise_multiplier` if that is more",
        **ABOVE_0,
    )
    dp_seed: int | None = key(
        None, "makes the noise repeatable, for studies: such a model protects nobody; default: noise by chance", **SEED
    )
