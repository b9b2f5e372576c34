"""Compatibility checks on resuming a job: the keys and the data that must not have changed since it started."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


def check_config(config: Config, before: Mapping[str, Any]) -> None:
    """Refuse to resume a job with a configuration that would change its results.

    `before` is the configuration that the job started with. Raises `UserError` naming each key with both values.
    """
    now, defaults = config.to_mapping(), Config().to_mapping()
    changed = [
        f"{field.name} was {was!r}, is now {now[field.name]!r}"
        for field in dataclasses.fields(config)
        if not field.metadata["may_change"]
        # A version that didn't know the key did what the default does.
        and (was := before.get(field.name, defaults[field.name])) != now[field.name]
    ]
    partition, was = chosen_partition(now), chosen_partition(before)
    if partition != was:
        changed.insert(0, f"partition was {was!r}, is now {partition!r}")
    scheduled = config.lr_schedule != "constant" or 0 < config.warmup < 1
    if scheduled and before["num_rounds"] != config.num_rounds:
        changed.append(
            f"num_rounds was {before['num_rounds']}, is now {config.num_rounds} (the learning rate depends on it)"
        )
    if config.dp_epsilon is not None and before["num_rounds"] != config.num_rounds:
        changed.append(
            f"num_rounds was {before['num_rounds']}, is now {config.num_rounds} (the noise for dp_epsilon depends on it)"
        )
    num_sites = [keys.get("num_sites") or len(keys["site_ids"]) for keys in (before, now)]
    if num_sites[0] != num_sites[1] and "column" not in (partition, was):  # the data determine that number
        changed.append(f"the number of sites was {num_sites[0]}, is now {num_sites[1]}")
    if changed:
        raise UserError(
            f"job_name={config.job_name} can't be resumed with different settings: {'; '.join(changed)}. "
            "Use the earlier values, or a new job_name and checkpoints_dir"
        )


def check_data(config: Config, before: str, now: str) -> None:
    """Raise `UserError` if the digest of the data, `now`, differs from the one that the job started with."""
    if before != now:
        raise UserError(
            f"job_name={config.job_name}: the data have changed since the job started "
            f"(digest {before[:12]}…, now {now[:12]}…); restore them, or start a new job"
        )
