"""How the deltas of a round become one: weighted mean, q-FFL, or robust to faulty sites.

An aggregation is made anew in each round, on every worker. `add` takes the delta of each site that the worker trains.
`combined` then yields what the server's optimiser is given.
"""

from collections.abc import Iterator
from typing import Protocol, TypeGuard

import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import algorithms
from scaling_fl.federated.aggregation import lora_error, lora_product, mean, private, qffl, robust, secure
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites


class Aggregation(Protocol):
    """Of one round, on one worker."""

    results: dict[str, float]  # metrics of the round, on worker 0

    def add(self, site: int, delta: torch.Tensor) -> None:
        """Take a site's delta (size + extra,), which the next site's training overwrites."""

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield the combined delta within `Collectives.owned_slice`, in chunks; a chunk is valid until the next one.

        Every worker must exhaust it: then all have finished. Raises `JobFailed` on all if a delta isn't finite.
        """
        ...


class Nothing:
    """Without a global model."""

    def __init__(self) -> None:
        self.results: dict[str, float] = {}

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        yield from ()


def begin(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Aggregation:
    """The configured aggregation, for a round."""
    given = worker_sites, collectives, state, round_
    return lora_error.watch(lora_product.begin(_configured(*given), *given), *given)


def takes_params(combination: Aggregation, config: Config) -> TypeGuard[mean.Mean]:
    """Whether sites' parameters will do in the place of their deltas: nothing but the mean looks at them."""
    return type(combination) is mean.Mean and not algorithms.shape_deltas(config)


def _configured(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Aggregation:
    config = worker_sites.resident.config
    if not config.aggregates:
        return Nothing()
    if config.dp_clip is None and not worker_sites.cohort(round_):
        return mean.Mean(collectives, state, {})  # nobody takes part: zeros
    if config.aggregation != "mean":
        return robust.begin(worker_sites, collectives, state, round_)
    if config.secure_aggregation:
        return secure.begin(worker_sites, collectives, state, round_)
    if config.dp_clip is not None:
        return private.begin(worker_sites, collectives, state, round_)
    if config.fairness_q > 0:
        return qffl.begin(worker_sites, collectives, state, round_)
    return mean.begin(worker_sites, collectives, state, round_)
