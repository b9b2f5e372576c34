"""How much a site trains in a round: its epochs, steps and examples. Pure, without torch."""

from collections.abc import Sequence
from typing import NamedTuple

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated import cohort


class LocalWork(NamedTuple):
    """The local training of one site in one round."""

    epochs: int  # 0 with `num_local_steps`
    steps: int
    examples: int  # seen: counted as often as they are seen


def of_site(config: Config, size: int, round_: int, site: int) -> LocalWork:
    """The work of a site with `size` examples in a round in which it takes part; a function of (seed, round, site).

    `local_epochs_range` draws its epochs uniformly, as Li et al. 2020 and Wang et al. 2020 let sites differ.
    """
    if config.num_local_steps is not None:
        return LocalWork(0, config.num_local_steps, config.num_local_steps * min(config.batch_size, size))
    epochs = config.num_local_epochs
    if config.local_epochs_range is not None:
        least, most = config.local_epochs_range
        epochs = int(seeding.generator(config.seed, "local_epochs", round_, site).integers(least, most + 1))
    return _of_epochs(config, size, epochs)


def of_round(config: Config, sizes: Sequence[int], round_: int) -> list[LocalWork]:
    """The work of all sites that train in a round."""
    return [of_site(config, size, round_, site) for site, size in cohort.trained(config, sizes, round_).items()]


def step_range(config: Config, size: int) -> tuple[int, int]:
    """The least and the largest number of steps that a site with `size` examples makes in a round."""
    if config.local_epochs_range is None:
        steps = of_site(config, size, 1, 0).steps
        return steps, steps
    least, most = config.local_epochs_range
    return _of_epochs(config, size, least).steps, _of_epochs(config, size, most).steps


def _of_epochs(config: Config, size: int, epochs: int) -> LocalWork:
    return LocalWork(epochs, epochs * -(-size // config.batch_size), epochs * size)
