"""Ditto: Li et al. 2021, algorithm 1.

Beside the global model w, each site keeps its own model v_k. In each round in which it takes part, it also trains v_k, on
its objective with a pull towards the server's w:

    v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w))

for as many steps as it trains the global model. v_k starts at the w of the site's first round. λ = 0 would be local
training, a large λ the global model. The global model is trained as without Ditto.
"""

from collections.abc import Mapping

import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.distributed.weighted_sum import divergence_error, max_abs
from scaling_fl.federated import local_work
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.federated.algorithms.fedprox import Proximal
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.local_optimiser import local_optimiser
from scaling_fl.federated.local_training import train_steps
from scaling_fl.federated.lr_schedule import step_rates
from scaling_fl.models.flat_parameters import Layout

_OWN = "ditto"


class Ditto(LocalTerm):
    """Keeps the site's own model, which is trained already."""

    def __init__(self, own: torch.Tensor):
        self._own = own  # (size,)

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        return {_OWN: self._own}


def used(config: Config) -> bool:
    """See the package."""
    return config.ditto_lambda > 0


def begin(start: Start) -> Ditto:
    """Train the site's own model. The resident model then holds the parameters that it held before."""
    site, resident = start.site, start.site.resident
    config, model = resident.config, resident.model
    before = model.flat.clone()
    server = start.params.to(resident.device)
    model.load(start.kept.get(_OWN, server))
    work = local_work.of_site(config, site.num_examples, start.round, site.number)
    batches = local_batches(config, resident.train, site.shard, start.round, site.number)
    torch.manual_seed(seeding.torch_seed(config.seed, "ditto", start.round, site.number))
    terms = [Proximal(config.ditto_lambda, server)]
    rates = step_rates(config, start.round, work.steps)
    train_steps(resident, local_optimiser(config, model), batches, rates, terms, counted=False)
    own = model.flat.clone()
    if not max_abs(own) < float("inf"):  # aggregation won't check: it stays at the site
        raise divergence_error([site.number])
    model.load(before)
    return Ditto(own)


def own_params(config: Config, layout: Layout, params: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """See the package."""
    return kept.get(_OWN, params)


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """See the package."""
    return {} if config.ditto_lambda == 0 else {_OWN: layout.size}
