"""Keys of a configuration that are sound alone, but not together."""

from typing import TYPE_CHECKING

from scaling_fl.config.partition_keys import check_partition_keys
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config


def check(config: "Config") -> None:
    """Raises `UserError` at the first keys that contradict each other, or need another one."""
    check_partition_keys(config.to_mapping())
    _check_sites(config)
    if config.warmup >= max(1, config.num_rounds):
        raise UserError(f"warmup={config.warmup:g}: num_rounds={config.num_rounds} ends before it; lower it")
    if config.max_restarts and config.checkpoints_dir is None:
        raise UserError(
            f"max_restarts={config.max_restarts}: the sites start again from the last checkpoint; give checkpoints_dir as well"
        )
    if str(config.keep_best).startswith("held_back.") and config.validation_fraction == 0:
        raise UserError(
            f"keep_best={config.keep_best!r}: no training rows are held back; give validation_fraction=0.1 as well"
        )


def _check_sites(config: "Config") -> None:
    if config.num_sites is not None and config.num_sites < len(config.site_ids):
        raise UserError(
            f"num_sites={config.num_sites}: fewer than the {len(config.site_ids)} processes of site_ids; use fewer of them"
        )
    if config.participation is not None and config.sites_per_round is not None:
        raise UserError(
            f"sites_per_round={config.sites_per_round} participation={config.participation:g}: they say the same; give one"
        )
    drawn = config.participation is not None or config.sites_per_round is not None
    if config.baseline == "local_only" and drawn:
        raise UserError(
            "baseline=local_only: each site trains on its own in every round; leave sites_per_round and participation out"
        )
    if config.sampling != "uniform" and not drawn:
        raise UserError(
            f"sampling={config.sampling!r}: all sites take part in each round; give sites_per_round or participation as well"
        )
