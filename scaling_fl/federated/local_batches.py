"""The batches that a site trains on in a round: whole epochs, or a number of steps."""

import itertools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from scaling_fl.config.schema import Config
from scaling_fl.data.token_store import TokenStore, training_batches
from scaling_fl.federated import local_work


def local_batches(
    config: Config, store: TokenStore, shard: npt.NDArray[np.int64], round_: int, site: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the indices of each batch; a function of (seed, round, site).

    With `num_local_steps`, a site's batches are one stream over all rounds: epoch after epoch, each in a new order. Batches
    are of one size; the examples that are left over at the end of an epoch are left out. A site that takes part in a
    round continues where it would be if it took part in every round.
    """

    def epoch(*path: int) -> list[npt.NDArray[np.int64]]:
        return training_batches(store, shard, config.batch_size, config.group_by_length, config.seed, *path)

    if config.num_local_steps is None:
        for number in range(local_work.of_site(config, len(shard), round_, site).epochs):
            yield from epoch(round_, site, number)
        return
    size = min(config.batch_size, len(shard))
    per_epoch = len(shard) // size
    first = (round_ - 1) * config.num_local_steps
    positions = range(first, first + config.num_local_steps)
    for number, of_epoch in itertools.groupby(positions, lambda position: position // per_epoch):
        whole = [batch for batch in epoch(0, site, number) if len(batch) == size]
        for position in of_epoch:
            yield whole[position % per_epoch]
