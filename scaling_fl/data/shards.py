"""Assignment of the training rows to sites, according to the configuration."""

from typing import NamedTuple

import numpy as np

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.data import partitioners
from scaling_fl.data.examples import Split
from scaling_fl.data.readers.tables import class_numbers, look_alikes
from scaling_fl.data.subsets import Indices, held_back
from scaling_fl.errors import UserError


class Sharding(NamedTuple):
    """The training rows: each one is either held back or in exactly one shard."""

    held_back: Indices
    trained: Indices  # all others
    shards: list[Indices]  # one per site, in ascending order


def make_shards(config: Config, split: Split, notes: list[str]) -> Sharding:
    """Hold back `validation_fraction` of the rows, and divide the others among the sites by the configured partition.

    Raises `UserError` if there are too few rows. Appends to `notes` if rows had to be moved.
    """
    held = held_back(split.labels, config.validation_fraction, config.data_seed)
    trained = np.setdiff1d(np.arange(len(split)), held)
    if chosen_partition(config.to_mapping()) == "column":
        shards = _by_column(config, split, trained, notes)
    else:
        shards = _assigned_shards(config, split.labels[trained], notes)
    return Sharding(held, trained, [trained[shard] for shard in shards])


def _assigned_shards(config: Config, labels: partitioners.Labels, notes: list[str]) -> list[Indices]:
    """Shards of every partition except `column`; sites below `min_examples_per_site` are topped up from the largest."""
    num_sites, minimum = config.all_sites, config.min_examples_per_site
    if len(labels) < num_sites * minimum:
        fewer = "use fewer site_ids" if config.num_sites is None else f"lower num_sites={num_sites}"
        raise UserError(
            f"{len(labels)} training examples are too few for {num_sites} sites: each needs "
            + (f"one; {fewer}" if minimum == 1 else f"min_examples_per_site={minimum}; lower it, {fewer}")
            + ", or use more data"
        )
    drawn = _assign_owners(config, labels, num_sites)
    owners = partitioners.ensure_minimum(drawn, num_sites, config.data_seed, minimum)
    if num_moved := int((drawn != owners).sum()):
        notes.append(
            f"{num_moved:,} of {len(labels):,} training rows were moved from the largest sites to sites that had drawn "
            f"fewer than min_examples_per_site={minimum}"
        )
    return partitioners.shards(owners, num_sites)


def _assign_owners(config: Config, labels: partitioners.Labels, num_sites: int) -> partitioners.Owners:
    seed = config.data_seed
    match chosen_partition(config.to_mapping()):
        case "by_label":
            return partitioners.by_label(labels, num_sites)
        case "dirichlet":
            assert config.alpha is not None
            scheme = partitioners.dirichlet_balanced if config.balanced else partitioners.dirichlet
            return scheme(labels, num_sites, seed, config.alpha)
        case "labels_per_site":
            assert config.labels_per_site is not None
            return partitioners.labels_per_site(labels, num_sites, seed, config.labels_per_site)
        case "sizes":
            return partitioners.sizes(labels, num_sites, seed, config.size_law or "lognormal", config.size_skew or 1.0)
    return partitioners.iid(labels, num_sites, seed)


def _by_column(config: Config, split: Split, trained: Indices, notes: list[str]) -> list[Indices]:
    assert split.sites is not None
    order = class_numbers(set(split.sites))
    notes += look_alikes(f"partition_column={config.partition_column!r}", order)
    what = f"partition_column={config.partition_column!r}: the training rows have {len(order):,} different values in it"
    if config.num_sites not in (None, len(order)):
        raise UserError(f"{what}, one site each, but num_sites={config.num_sites}; leave num_sites out")
    if len(order) < len(config.site_ids):
        raise UserError(
            f"{what}, one site each: fewer than the {len(config.site_ids)} processes in site_ids; "
            "shorten site_ids, or choose another column"
        )
    shards = partitioners.shards(partitioners.by_value([split.sites[row] for row in trained], order), len(order))
    smallest, value = min(zip(map(len, shards), order, strict=True))
    if smallest < config.min_examples_per_site:
        raise UserError(
            f"{what}, of which {value!r} has {smallest} to train on, fewer than min_examples_per_site="
            f"{config.min_examples_per_site}; lower it, lower validation_fraction, or merge values in the file"
        )
    return shards
