"""Keys of sites and partitions: how many sites, which take part in a round, and which training rows each holds."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, at_least, key, one_of
from scaling_fl.config.partition_keys import PARTITIONS, SIZE_LAWS

SAMPLINGS = ("uniform", "by_examples", "poisson")


@dataclass(frozen=True)
class SiteKeys:
    """Sites and partitions."""

    site_ids: tuple[int, ...] = key(
        (0, 0),
        "one process per entry; each entry is the index of the process's GPU, or -1 for the CPU",
        "a list of GPU indices such as [0,0,1,1], or of -1 for the CPU, without mixing the two",
        lambda ids: len(ids) > 0 and (all(i >= 0 for i in ids) or all(i == -1 for i in ids)),
        may_change=True,  # the number of sites may not: see config/compatibility.py
    )
    num_sites: int | None = key(
        None,
        "total number of sites, shared out among the processes of `site_ids`; default: one site per process",
        **at_least(1),
        may_change=True,
    )
    sites_per_round: int | None = key(None, "number of sites that train in each round; default: all", **at_least(1))
    participation: float | None = key(
        None,
        "share of all sites that train in each round, instead of `sites_per_round`",
        "a number above 0, up to 1",
        lambda share: 0 < share <= 1,
    )
    sampling: str = key(
        "uniform",
        "how each round's sites are drawn: uniform, by_examples (in proportion to their examples, with replacement; every "
        "draw has the same weight in the mean), or poisson (each site takes part with the probability `participation`)",
        f"one of {', '.join(SAMPLINGS)}",
        SAMPLINGS.__contains__,
    )
    partition: str | None = key(
        None,
        "how training rows are divided among sites: iid (the default), by_label, dirichlet, labels_per_site, sizes or column; "
        "see docs/partitions-and-cohorts.md",
        **one_of(PARTITIONS),
        may_change=True,  # the partition that it and `iid_split` select may not: see config/compatibility.py
    )
    iid_split: bool | None = key(
        None, "short for `partition=iid` (True) or `partition=by_label` (False)", may_change=True
    )
    alpha: float | None = key(
        None,
        "for `partition=dirichlet`: concentration; the smaller it is, the fewer labels dominate each site",
        "a number above 0 (from 1e-9 to 1e9)",
        lambda alpha: 1e-9 <= alpha <= 1e9,
    )
    balanced: bool = key(
        False, "for `partition=dirichlet`: True makes all sites the same size; False lets their sizes vary at random"
    )
    labels_per_site: int | None = key(
        None,
        "for `partition=labels_per_site`: pieces that each site receives; most pieces hold a single label",
        **at_least(1),
    )
    size_law: str | None = key(
        None, "for `partition=sizes`: distribution of site sizes, lognormal (the default) or power", **one_of(SIZE_LAWS)
    )
    size_skew: float | None = key(
        None,
        "for `partition=sizes`: standard deviation of the log of site sizes (`size_law=lognormal`), or the power law's negated "
        "exponent (`size_law=power`); default: 1",
        **ABOVE_0,
    )
    partition_column: str | None = key(
        None,
        "for `partition=column`: column of the training file whose values are the sites (tasks agnews, csv, hub, "
        "spooky_author, yelp)",
    )
    min_examples_per_site: int = key(
        1,
        "minimum number of rows per site; smaller sites are topped up from the largest, or refused with `partition=column`",
        **at_least(1),
    )
