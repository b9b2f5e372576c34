"""The learning rate over the whole run: a schedule that began anew in each round would be another one."""

import math

from scaling_fl.config.schema import Config


def learning_rate(config: Config, round_: int, progress: float) -> float:
    """The rate when a site has done `progress` (0 to 1) of round `round_`; of a step, its middle counts.

    Time is measured in rounds, so that sites with shards of unequal size follow one schedule. Warm-up rises linearly
    from 0; then the rate stays ("constant"), falls in a line ("linear") or as half a cosine ("cosine") to 0 at
    the end of the last round. `config.warmup` is a number of rounds if it is 1 or more, else a share of all rounds.
    """
    time = round_ - 1 + progress
    warmup = config.warmup if config.warmup >= 1 else config.warmup * config.num_rounds
    if time < warmup:
        return config.learning_rate * time / warmup
    if config.lr_schedule == "constant":
        return config.learning_rate
    left = (config.num_rounds - time) / (config.num_rounds - warmup)  # 1 after warm-up, 0 at the end
    return config.learning_rate * (left if config.lr_schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)
