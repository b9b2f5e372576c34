"""Keys of robustness: aggregation that withstands faulty sites, and attacks for studies of it."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, at_least, key, one_of

AGGREGATIONS = ("mean", "median", "trimmed_mean", "krum", "geometric_median")
UNWEIGHTED = ("median", "trimmed_mean", "krum")
ATTACKS = ("label_flip", "sign_flip", "gaussian", "scale")


@dataclass(frozen=True)
class RobustnessKeys:
    """Robustness."""

    aggregation: str = key(
        "mean",
        "how the deltas of a round are combined: mean (weighted), or robust to faulty sites: median, trimmed_mean, krum or "
        "geometric_median; see docs/methods.md",
        **one_of(AGGREGATIONS),
    )
    faulty_sites: int | None = key(
        None,
        "faulty or hostile sites in a round that `aggregation=trimmed_mean` or `krum` withstands",
        **at_least(1),
    )
    krum_sites: int = key(
        1, "for `aggregation=krum`: the number of deltas with the best scores whose mean is taken", **at_least(1)
    )
    attack: str | None = key(
        None,
        "what the attackers do, for studies: label_flip (they train on wrong labels), sign_flip (they send the opposite of "
        "their delta), gaussian (they send noise) or scale (they exaggerate)",
        **one_of(ATTACKS),
    )
    attackers: int | None = key(
        None, "number of sites that attack; the sites are drawn with `seed`, for the whole job", **at_least(1)
    )
    attack_strength: float | None = key(
        None,
        "length of what an attacker sends, in lengths of its own delta, for `attack=sign_flip`, `gaussian` or `scale`; "
        "default: 1, for scale 10",
        **ABOVE_0,
    )
