"""The partition that a configuration selects, and the keys that belong to each partition."""

from collections.abc import Mapping
from typing import Any

from scaling_fl.errors import UserError

PARTITIONS = ("iid", "by_label", "dirichlet", "labels_per_site", "sizes", "column")
SIZE_LAWS = ("lognormal", "power")

PARTITION_OF_KEY = {  # key → the partition that uses it
    "alpha": "dirichlet", "balanced": "dirichlet", "labels_per_site": "labels_per_site", "size_law": "sizes",
    "size_skew": "sizes", "partition_column": "column",
}  # fmt: skip

_REQUIRED = {"dirichlet": "alpha=0.5", "labels_per_site": "labels_per_site=2", "column": "partition_column=NAME"}


def chosen_partition(keys: Mapping[str, Any]) -> str:
    """The selected partition, set by `partition` or by its short form `iid_split`."""
    return keys.get("partition") or ("by_label" if keys.get("iid_split") is False else "iid")


def check_partition_keys(keys: Mapping[str, Any]) -> None:
    """Raise `UserError` unless all partition keys that are set belong to the selected partition."""
    partition = chosen_partition(keys)
    short = {True: "iid", False: "by_label", None: partition}[keys["iid_split"]]
    if short != partition:
        raise UserError(
            f"iid_split={keys['iid_split']}: short for partition={short}, but partition={partition} is set "
            "as well; leave one of them out"
        )
    for key, owner in PARTITION_OF_KEY.items():
        if keys[key] not in (None, False) and owner != partition:
            raise UserError(
                f"{key}={keys[key]!r}: belongs to partition={owner}, but this is partition={partition}; leave it out, "
                f"or set partition={owner}"
            )
    example = _REQUIRED.get(partition)
    if example is not None and keys[example.partition("=")[0]] is None:
        raise UserError(f"partition={partition!r}: needs {example.partition('=')[0]}; set {example} as well")
