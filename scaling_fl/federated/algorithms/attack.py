"""Attacks on the aggregation, for studies: what hostile sites do in the place of honest training.

With the site's own delta and the strength s:

- label_flip: it trains on the label C − 1 − y in the place of y, of C labels (Fang et al. 2020, section 7.1).
- sign_flip: it sends −s × delta.
- gaussian: it sends noise of the length s ‖delta‖, equally distributed over all directions.
- scale: it sends s × delta.

Only trained parameters are attacked.
"""

from dataclasses import dataclass

import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated import attackers
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.models.flat_parameters import Layout


@dataclass(frozen=True)
class Attack(LocalTerm):
    """The attack of one site in one round."""

    kind: str
    strength: float
    seed: int
    layout: Layout

    def labels(self, labels: torch.Tensor, num_labels: int) -> torch.Tensor:
        """See `LocalTerm.labels`."""
        return num_labels - 1 - labels if self.kind == "label_flip" else labels

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        values = delta[: self.layout.trained]
        if self.kind == "gaussian":
            length = values.norm()
            values.normal_(generator=torch.Generator(values.device).manual_seed(self.seed))
            for gap in self.layout.gaps():  # no checkpoint has them
                values[gap] = 0
            values.mul_(self.strength * length / values.norm())
        elif self.kind != "label_flip":
            values.mul_(-self.strength if self.kind == "sign_flip" else self.strength)
        return {}


def used(config: Config) -> bool:
    """See the package."""
    return config.attack is not None


def begin(start: Start) -> Attack | None:
    """See the package."""
    site, resident = start.site, start.site.resident
    config = resident.config
    if site.number not in attackers.drawn(config, config.all_sites):
        return None
    assert config.attack is not None
    strength = config.attack_strength or (10.0 if config.attack == "scale" else 1.0)
    seed = seeding.torch_seed(config.seed, "attack", start.round, site.number)
    return Attack(config.attack, strength, seed, resident.model.layout)
