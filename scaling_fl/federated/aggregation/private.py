"""DP-FedAvg at the level of sites: McMahan et al. 2018, algorithm 1 with flat clipping and the fixed-denominator mean.

Each of the N sites takes part with probability q. With the clip C and the noise multiplier z:

    mean delta = (Σ delta_k × min(1, C / ‖delta_k‖) + normal(0, (z C)²)) / (q N)

With `dp_clip_quantile` γ, C follows the γ-quantile of the sites' norms (Andrew et al. 2021, algorithm 1). With b_k = 1 if
‖delta_k‖ ≤ C, otherwise 0:

    b = Σ b_k / (q N) + noise,   C ← C exp(−η (b − γ))

What is summed is b_k − ½, of which a site changes at most ½, so that b = ½ + (Σ (b_k − ½) + noise) / (q N). The noise of the
deltas then has the multiplier (z⁻² − (2 σ_b)⁻²)^(−1/2): z still describes both queries together.
log C is what the server keeps beside the parameters. However long the deltas grow, C stops at the length whose noise still
fits into the sum.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import cohort
from scaling_fl.federated.aggregation.mean import Mean
from scaling_fl.federated.privacy import guarantee
from scaling_fl.federated.privacy.noise import gaussian
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites
from scaling_fl.models.flat_parameters import Layout


@dataclass(kw_only=True)
class PrivateMean(Mean):
    """The mean of one round. Its noise is drawn once, by worker 0, and summed like the delta of a site."""

    config: Config
    layout: Layout
    round: int
    clip: float
    expected: float  # q N
    noise_multiplier: float  # of the deltas' sum

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        size = len(self.state.params)
        norm = delta[:size].double().norm().item()
        if not norm <= self.clip:  # NaN, too: the sum then says so
            delta[:size].mul_(self.clip / norm)
        if len(delta) > size:
            delta[size] = self.config.dp_clip_rate * (0.5 if norm <= self.clip else -0.5)
        super().add(site, delta)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        if self.collectives.rank == 0:
            self.total.add(NOISE, self._noise(), 1 / self.expected)
        yield from super().combined()

    def _noise(self) -> torch.Tensor:
        config, size = self.config, len(self.state.params)
        noise = gaussian(len(self.state.row), config.dp_seed, self.round)
        if config.dp_clip_quantile is not None:
            count = count_noise(config, self.expected) * noise[size].item()
            noise[size:] = 0
            noise[size] = config.dp_clip_rate * (count + (0.5 - config.dp_clip_quantile) * self.expected)
        values = torch.zeros_like(noise)  # nothing is added to frozen parameters, and to gaps between tensors
        values[size:] = noise[size:]
        for entry in self.layout.entries:
            if entry.name not in self.layout.fixed:
                at = slice(entry.start, entry.start + entry.shape.numel())
                torch.mul(noise[at], self.noise_multiplier * self.clip, out=values[at])
        return values


NOISE = -1  # in the place of a site's number


def count_noise(config: Config, expected: float) -> float:
    """σ_b: as Andrew et al. 2021 propose, a twentieth of the expected number of sites, unless the key says otherwise."""
    return (
        config.dp_count_noise
        if config.dp_count_noise is not None
        else max(expected / 20, config.dp_noise_multiplier or 0)
    )


def deltas_noise(config: Config, expected: float) -> float:
    """The noise multiplier of the deltas' sum; that of the job describes it and the count of adaptive clipping."""
    z = config.dp_noise_multiplier
    assert z is not None
    return z if config.dp_clip_quantile is None else (z**-2 - (2 * count_noise(config, expected)) ** -2) ** -0.5


def current_clip(config: Config, state: ServerState, bound: float) -> float:
    """C of the coming round, below `bound`."""
    assert config.dp_clip is not None
    if config.dp_clip_quantile is None:
        return config.dp_clip
    return min(config.dp_clip * math.exp(min(state.extra[0].item(), 700.0)), 0.99 * bound)  # exp(710) overflows


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> PrivateMean:
    """The private mean of a round. The server keeps the log of C over the first C, so that it starts at 0."""
    config, sizes = worker_sites.resident.config, worker_sites.shards.sizes
    expected = cohort.probability(config, len(sizes)) * len(sizes)
    weights = {NOISE: 1 / expected} | worker_sites.cohort(round_)
    z = deltas_noise(config, expected)
    clip = current_clip(config, state, guarantee.largest_clip(z, expected / len(sizes)))
    private = PrivateMean(
        collectives, state, weights, config=config, layout=worker_sites.resident.model.layout, round=round_, clip=clip,
        expected=expected, noise_multiplier=z,
    )  # fmt: skip
    if collectives.rank == 0:
        private.results = {"dp.clip": clip} | guarantee.after(config, len(sizes), round_)
    return private
