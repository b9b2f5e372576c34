"""q-FFL by q-FedAvg: Li et al. 2020 (Fair Resource Allocation in Federated Learning), algorithm 2.

The objective Σ p_k F_k(w)^(q+1) / (q+1) counts sites the more, the worse the server's model does there; q = 0 is FedAvg.
With F_k the mean loss of the server's w over site k's shard, L = 1 / learning rate, and delta_k = w − w_k:

    Δ_k = F_k^q L delta_k,   h_k = q F_k^(q−1) ‖L delta_k‖² + L F_k^q,   w ← w − Σ Δ_k / Σ h_k

The paper draws site k with probability p_k; here p_k, as `weighting` says, weighs both sums. So this is a mean with the
weights p_k F_k^q / Σ p_j F_j^q, which are known before the training, times the scale Σ p_k F_k^q / Σ p_k h_k / L.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated.aggregation.mean import Mean
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites

_LEAST_LOSS = 1e-10  # F^(q−1) is infinite at 0 for q below 1


@dataclass
class FairMean(Mean):
    """The mean of one round."""

    q: float = field(kw_only=True)
    rate: float = field(kw_only=True)  # 1 / L
    shares: Mapping[int, float] = field(kw_only=True)  # p_k
    losses: Mapping[int, float] = field(kw_only=True)  # F_k
    squares: dict[int, float] = field(default_factory=dict)  # ‖delta_k‖² of this worker's sites

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        self.squares[site] = delta[: self.state.trained].double().square().sum().item()
        super().add(site, delta)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        squares = {site: value for found in self.collectives.all_gather(self.squares) for site, value in found.items()}
        powers = sum(share * self.losses[site] ** self.q for site, share in self.shares.items())
        curvature = sum(
            share * self.q * self.losses[site] ** (self.q - 1) * squares[site] / self.rate
            for site, share in self.shares.items()
        )
        self.scale = powers / (powers + curvature)
        yield from super().combined()


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> FairMean:
    """Evaluate the server's model on the shards of the cohort: a forward pass over each."""
    resident = worker_sites.resident
    config = resident.config
    mine = {}
    for site in worker_sites.participants(round_):
        batches = evaluate(resident, state.params, 0, 1, resident.training_rows(site.shard), counted=False)
        loss = sum(batch.loss_sum for batch in batches) / sum(batch.count for batch in batches)
        mine[site.number] = max(_LEAST_LOSS, loss)
    losses = {site: loss for found in collectives.all_gather(mine) for site, loss in found.items()}
    shares = worker_sites.cohort(round_)
    powers = {site: share * losses[site] ** config.fairness_q for site, share in shares.items()}
    return FairMean(
        collectives, state, {site: power / sum(powers.values()) for site, power in powers.items()},
        q=config.fairness_q, rate=config.learning_rate, shares=shares, losses=losses,
    )  # fmt: skip
