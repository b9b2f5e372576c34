"""Sites and partitions: who takes part, and which training rows each site holds."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, at_least, key, one_of
from scaling_fl.config.partition_keys import PARTITIONS, SIZE_LAWS

SAMPLINGS = ("uniform", "by_examples")


@dataclass(frozen=True)
class SiteKeys:
    """Sites and partitions."""

    site_ids: tuple[int, ...] = key(
        (0, 0),
        "one process per entry: the index of its GPU; -1 is the CPU",
        "a list of GPU indices such as [0,0,1,1], where -1 is the CPU and GPUs and CPU don't mix",
        lambda ids: len(ids) > 0 and (all(i >= 0 for i in ids) or all(i == -1 for i in ids)),
        free=True,  # but not the number of sites: see resume.py
    )
    num_sites: int | None = key(
        None, "sites in all, hosted by the processes of `site_ids`; default: one per entry", **at_least(1), free=True
    )
    sites_per_round: int | None = key(None, "sites that take part in a round; default: all", **at_least(1))
    participation: float | None = key(
        None,
        "the same as a share of all sites",
        "a number above 0, up to 1",
        lambda share: 0 < share <= 1,
    )
    sampling: str = key(
        "uniform",
        "how those are drawn: uniform, or by_examples (in proportion to them; each draw weighs the same, and repeats count)",
        f"one of {', '.join(SAMPLINGS)}",
        SAMPLINGS.__contains__,
    )
    partition: str | None = key(
        None,
        "who holds what: iid (the default), by_label, dirichlet, labels_per_site, sizes or column; see docs/partitions-and-cohorts.md",
        **one_of(PARTITIONS),
        free=True,  # but not what it and `iid_split` mean: see resume.py
    )
    iid_split: bool | None = key(None, "short for a partition: True for iid, False for by_label", free=True)
    alpha: float | None = key(
        None,
        "dirichlet: the smaller, the fewer labels a site has much of",
        "a number above 0 (from 1e-9 to 1e9)",
        lambda alpha: 1e-9 <= alpha <= 1e9,
    )
    balanced: bool = key(False, "dirichlet: True gives all sites the same size; False draws that, too")
    labels_per_site: int | None = key(
        None, "labels_per_site: pieces of one label, mostly, that each site gets", **at_least(1)
    )
    size_law: str | None = key(None, "sizes: lognormal (the default) or power", **one_of(SIZE_LAWS))
    size_skew: float | None = key(
        None, "sizes: sigma of the logarithms, or minus the exponent of the power law; default: 1", **ABOVE_0
    )
    partition_column: str | None = key(
        None, "column: the training file's column whose values are the sites (agnews, csv, hub, spooky_author, yelp)"
    )
    min_examples_per_site: int = key(
        1, "sites that draw fewer get some from the largest; by a column they can't: it is refused", **at_least(1)
    )
