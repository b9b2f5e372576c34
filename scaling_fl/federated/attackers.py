"""The sites that attack, in a study of robust aggregation. Pure, without torch."""

from scaling_fl import seeding
from scaling_fl.config.schema import Config


def drawn(config: Config, num_sites: int) -> frozenset[int]:
    """The attackers of a job, a function of its seed."""
    if config.attackers is None:
        return frozenset()
    rng = seeding.generator(config.seed, "attackers")
    return frozenset(rng.choice(num_sites, config.attackers, replace=False).tolist())
