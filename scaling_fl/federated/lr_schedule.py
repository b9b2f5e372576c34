"""The learning-rate schedule. It spans the whole run; rounds don't restart it."""

import math

from scaling_fl.config.schema import Config


def learning_rate(config: Config, round_: int, progress: float) -> float:
    """Return the rate at `progress` (0 to 1) through round `round_`; callers pass the middle of a step.

    Time is measured in rounds, so that sites with unequal shards follow the same schedule. Warm-up rises linearly from
    0. Then the rate stays ("constant"), or falls linearly ("linear") or along half a cosine ("cosine") to
    `final_learning_rate` at the end of the last round. `config.warmup` is a number of rounds if at least 1, otherwise a
    fraction of all rounds.
    """
    time = round_ - 1 + progress
    warmup = config.warmup if config.warmup >= 1 else config.warmup * config.num_rounds
    if time < warmup:
        return config.learning_rate * time / warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    left = (config.num_rounds - time) / (config.num_rounds - warmup)  # 1 after warm-up, 0 at the end
    share = left if config.lr_schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
    return config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * share


def step_rates(config: Config, round_: int, num_steps: int) -> list[float]:
    """The learning rates of a site's local steps in a round."""
    return [learning_rate(config, round_, (step + 0.5) / num_steps) for step in range(num_steps)]
