"""What a job means: which keys, and which data, must be those that it began with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


def check_config(config: Config, before: Mapping[str, Any]) -> None:
    """Refuse to go on with a job whose meaning would change.

    `before` is the configuration with which it began. Raises `UserError` naming each key with both values.
    """
    now = config.to_mapping()
    changed = [
        f"{field.name} was {before[field.name]!r}, is {now[field.name]!r}"
        for field in dataclasses.fields(config)
        if not field.metadata["free"] and field.name in before and before[field.name] != now[field.name]
    ]
    partition, was = chosen_partition(now), chosen_partition(before)
    if partition != was:
        changed.insert(0, f"partition was {was!r}, is {partition!r}")
    scheduled = config.lr_schedule != "constant" or 0 < config.warmup < 1
    if scheduled and before["num_rounds"] != config.num_rounds:
        changed.append(
            f"num_rounds was {before['num_rounds']}, is {config.num_rounds}, on which the learning rate depends"
        )
    sites = [keys.get("num_sites") or len(keys["site_ids"]) for keys in (before, now)]
    if sites[0] != sites[1] and "column" not in (partition, was):  # where the data say how many
        changed.append(f"the number of sites was {sites[0]}, is {sites[1]}")
    if changed:
        raise UserError(
            f"job_name={config.job_name} can't be resumed with another meaning: {'; '.join(changed)}. "
            "Use the earlier values, or a new job_name and checkpoints_dir"
        )


def check_data(config: Config, before: str, now: str) -> None:
    """Refuse to go on with other data. Takes their digests; raises `UserError`."""
    if before != now:
        raise UserError(
            f"job_name={config.job_name}: the data differ from those it began with "
            f"(digest {before[:12]}…, now {now[:12]}…); restore them, or start a new job"
        )
