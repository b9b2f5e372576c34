"""Secure aggregation, as a simulation: the server sums masked deltas, and no message says anything of a single delta.

Bonawitz et al. 2017; see privacy/masks.py. The result is bitwise that of the mean without masks, over the sites that
haven't dropped out. It protects nobody here, where all sites train in processes of one user: it shows what the protocol
does and costs.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.errors import JobFailed
from scaling_fl.federated.aggregation.mean import Mean
from scaling_fl.federated.compression import traffic
from scaling_fl.federated.privacy import masks
from scaling_fl.federated.privacy.masks import Secrets
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites


@dataclass
class SecureMean(Mean):
    """The mean of one round over the sites that have sent."""

    secrets: Secrets = field(kw_only=True)
    dropped: frozenset[int] = field(kw_only=True)
    mine: list[int] = field(default_factory=list)  # sites that this worker has trained

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`. Adds the site's message, unless it drops out before it sends it."""
        self.mine.append(site)
        if site not in self.dropped:
            super().add(site, delta)
            with _on_host(self.total.buffer) as values:
                masks.add_masks(values, site, self.secrets)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`. Each worker, as a part of the server, removes the masks of the sites that it has trained."""
        sent = [site for site in self.secrets.sites if site not in self.dropped]
        if self.total.scale == 0:  # all of its sites dropped out
            self.total.buffer.zero_()
            self.total.scale = 1.0
        with _on_host(self.total.buffer) as values:
            masks.remove_masks(values, self.secrets, sent, self.mine)
        scale = 1 / sum(self.weights[site] for site in sent) if self.dropped else 1
        for chunk, delta in super().combined():
            yield chunk, delta if scale == 1 else delta.mul_(scale)


@contextmanager
def _on_host(buffer: torch.Tensor) -> Iterator[masks.Masked]:
    on_host = buffer.cpu()
    yield on_host.numpy()
    if buffer.is_cuda:
        buffer.copy_(on_host)


def dropouts(config: Config, sites: list[int], round_: int) -> frozenset[int]:
    """The sites that drop out of a round, each with the probability `secure_dropout`; a function of (seed, round, site)."""
    draws = {site: seeding.generator(config.seed, "dropout of a site", round_, site).random() for site in sites}
    return frozenset(site for site, draw in draws.items() if draw < config.secure_dropout)


def threshold(config: Config, num_sites: int) -> int:
    """t: two thirds of the cohort, unless the key says otherwise."""
    return config.secure_threshold or max(1, math.ceil(2 * num_sites / 3))


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> SecureMean:
    """Draw the round's secrets, once for all workers. Raises `JobFailed` if too few sites are left."""
    config = worker_sites.resident.config
    weights = worker_sites.cohort(round_)
    sites, least = list(weights), threshold(config, len(weights))
    dropped = dropouts(config, sites, round_)
    if len(sites) - len(dropped) < least:
        raise JobFailed(
            f"round {round_}: {len(sites) - len(dropped)} of {len(sites)} sites are left, fewer than the {least} whose "
            "shares unmask the sum; lower secure_threshold or secure_dropout"
        )
    of_round = collectives.all_gather(masks.draw(sites, least) if collectives.rank == 0 else None)[0]
    combination = SecureMean(collectives, state, weights, secrets=of_round, dropped=dropped)
    if collectives.rank == 0:
        combination.results = {"bytes.up": _bytes_up(worker_sites, len(sites), len(dropped))}
    return combination


def _bytes_up(worker_sites: WorkerSites, num_sites: int, num_dropped: int) -> float:
    """What all sites of a round send, of which some drop out before they send their sum."""
    model, config = worker_sites.resident.model, worker_sites.resident.config
    plain = dataclasses.replace(config, secure_aggregation=False)
    size = traffic(plain, model.layout, len(model.extra))[1] // 4
    up = traffic(config, model.layout, len(model.extra), num_sites)[1]
    return num_sites * up - num_dropped * masks.num_unsent_bytes(num_sites, size)
