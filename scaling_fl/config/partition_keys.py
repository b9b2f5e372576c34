"""Which partition a configuration chooses, and which keys belong to it."""

from collections.abc import Mapping
from typing import Any

from scaling_fl.errors import UserError

PARTITIONS = ("iid", "by_label", "dirichlet", "labels_per_site", "sizes", "column")


SIZE_LAWS = ("lognormal", "power")


KEY_OF = {  # the partition that has a use for the key
    "alpha": "dirichlet", "balanced": "dirichlet", "labels_per_site": "labels_per_site", "size_law": "sizes",
    "size_skew": "sizes", "partition_column": "column",
}  # fmt: skip


_NEEDED = {"dirichlet": "alpha=0.5", "labels_per_site": "labels_per_site=2", "column": "partition_column=NAME"}


def chosen_partition(keys: Mapping[str, Any]) -> str:
    """The partition that a configuration chooses, perhaps by `iid_split`, the short form of two."""
    return keys.get("partition") or ("by_label" if keys.get("iid_split") is False else "iid")


def check_partition_keys(keys: Mapping[str, Any]) -> None:
    """Raises `UserError` where the keys of a configuration are not those of one partition."""
    partition = chosen_partition(keys)
    short = {True: "iid", False: "by_label", None: partition}[keys["iid_split"]]
    if short != partition:
        raise UserError(
            f"iid_split={keys['iid_split']}: it is short for partition={short}, but partition={partition} is given as "
            "well; leave one of them out"
        )
    for key, owner in KEY_OF.items():
        if keys[key] not in (None, False) and owner != partition:
            raise UserError(
                f"{key}={keys[key]!r}: it belongs to partition={owner}, and this is partition={partition}; leave it out, "
                f"or write partition={owner}"
            )
    example = _NEEDED.get(partition)
    if example is not None and keys[example.partition("=")[0]] is None:
        raise UserError(f"partition={partition!r}: it needs {example.partition('=')[0]}; write {example} as well")
