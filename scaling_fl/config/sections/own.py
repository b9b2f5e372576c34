"""Keys of what each site has of its own: test rows, and a model."""

from dataclasses import dataclass

from scaling_fl.config.key import NOT_NEGATIVE, at_least, key, one_of


@dataclass(frozen=True)
class OwnKeys:
    """Each site's own."""

    site_test: str | None = key(
        None,
        "test rows of each site's own, for the metrics `site_test.…` and `personal.…`: held_back (part of its shard) or "
        "partitioned (its share of the test set, divided like the training set); default: none",
        **one_of(("held_back", "partitioned")),
    )
    site_test_fraction: float = key(
        0.2,
        "for `site_test=held_back`: share of a site's shard that it is tested on, stratified by label",
        "a number above 0, below 1",
        lambda share: 0 < share < 1,
    )
    personal: str | None = key(
        None,
        "parameters that stay at each site and aren't averaged (FedPer): head, or a regular expression that matches part of "
        "their names; default: none",
    )
    ditto_lambda: float = key(
        0.0,
        "Ditto: λ, the strength with which each site's own model is pulled towards the server's; 0: no own models",
        **NOT_NEGATIVE,
    )
    fine_tune_steps: int = key(
        0, "local steps of each site's own model before it is evaluated on the site's test rows", **at_least(0)
    )
