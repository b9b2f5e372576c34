"""The weighted mean of the deltas: McMahan et al. 2017, algorithm 1."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.weighted_sum import WeightedSum
from scaling_fl.federated import local_work
from scaling_fl.federated.algorithms import fednova
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites


@dataclass
class Mean:
    """scale × Σ weights[k] × delta_k; the scale is for trained parameters only. The weights sum to 1."""

    collectives: Collectives
    state: ServerState
    weights: Mapping[int, float]  # by site, of the whole cohort
    scale: float = 1.0
    total: WeightedSum = field(init=False)
    results: dict[str, float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.total = self.collectives.weighted_sum()

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        self.total.add(site, delta, self.weights[site])

    def add_params(self, site: int, params: torch.Tensor) -> None:
        """Take a site's parameters (size,) in the place of its delta: the sum subtracts them in the same pass over memory."""
        self.total.add(site, params, self.weights[site], self.state.params)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        for chunk, delta in self.collectives.weighted_mean(self.total):
            yield chunk, self.state.scaled(delta, self.scale, chunk)


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Mean:
    """The mean with the weights that `weighting` and `fednova` say."""
    config, sizes = worker_sites.resident.config, worker_sites.shards.sizes
    if config.baseline == "centralised":  # its one site has the whole cohort's examples
        return Mean(collectives, state, {0: 1.0})
    shares = worker_sites.cohort(round_)
    if not config.fednova:
        return Mean(collectives, state, shares)
    steps = {site: local_work.of_site(config, sizes[site], round_, site).steps for site in shares}
    effective = {site: fednova.effective_steps(config, round_, number) for site, number in steps.items()}
    return Mean(collectives, state, *fednova.weights(shares, effective))
