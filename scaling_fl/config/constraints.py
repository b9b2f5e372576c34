"""Constraints between keys: values that are valid alone, but not together."""

from typing import TYPE_CHECKING, Any

from scaling_fl.config.partition_keys import check_partition_keys
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config


def check(config: "Config") -> None:
    """Raise `UserError` at the first keys that contradict each other, or require another key."""
    check_partition_keys(config.to_mapping())
    _check_sites(config)
    _check_methods(config)
    if config.warmup >= max(1, config.num_rounds):
        raise UserError(f"warmup={config.warmup:g}: expected less than num_rounds={config.num_rounds}; lower warmup")
    if config.max_restarts and config.checkpoints_dir is None:
        raise UserError(
            f"max_restarts={config.max_restarts}: restarts need a checkpoint to resume from; leave out checkpoints_dir=None"
        )
    if config.export != "last" and config.keep_best is None:
        raise UserError(
            f"export={config.export}: no metric chooses the best round; set keep_best=validation.accuracy as well, or "
            "validation_fraction=0.1 keep_best=held_back.accuracy"
        )
    if config.export != "last" and not config.has_global_model:
        raise UserError(f"export={config.export}: baseline=local_only has no global model; leave out export")
    if str(config.keep_best).startswith("held_back.") and config.validation_fraction == 0:
        raise UserError(
            f"keep_best={config.keep_best!r}: no training rows are held back; set validation_fraction=0.1 as well"
        )


def _check_sites(config: "Config") -> None:
    if config.num_sites is not None and config.num_sites < len(config.site_ids):
        raise UserError(
            f"num_sites={config.num_sites}: fewer than the {len(config.site_ids)} processes in site_ids; raise num_sites or shorten site_ids"
        )
    if config.participation is not None and config.sites_per_round is not None:
        raise UserError(
            f"sites_per_round={config.sites_per_round} participation={config.participation:g}: both set the number of sites per round; leave one of them out"
        )
    samples = config.participation is not None or config.sites_per_round is not None
    if config.baseline == "local_only" and samples:
        raise UserError(
            "baseline=local_only: each site trains on its own in every round; leave out sites_per_round and participation"
        )
    if config.sampling != "uniform" and not samples:
        raise UserError(
            f"sampling={config.sampling!r}: all sites take part in every round; set sites_per_round or participation as well"
        )


def _check_methods(config: "Config") -> None:
    lengths = ("num_local_epochs", "num_local_steps", "local_epochs_range")
    given = [name for name in lengths if _is_set(config, name)]
    if len(given) > 1:
        typed = " ".join(f"{name}={config.to_mapping()[name]}".replace(", ", ",") for name in given)
        raise UserError(f"{typed}: each sets the length of local training; leave all but one of them out")
    if config.fednova and config.optimiser != "sgd":
        raise UserError(
            f"fednova=True optimiser={config.optimiser}: FedNova counts steps of plain SGD; set optimiser=sgd, or leave out "
            "fednova"
        )
    _check_plain(config)
    if config.server_nesterov and (config.server_optimiser != "sgd" or not config.server_momentum):
        raise UserError(
            "server_nesterov=True: Nesterov's momentum belongs to server_optimiser=sgd; set server_momentum=0.9 as well, or "
            "leave out server_nesterov"
        )
    takes = {"server_beta2": ("adam", "yogi"), "server_tau": ("adam", "yogi", "adagrad")}
    for name, optimisers in takes.items():
        value = getattr(config, name)
        if value is not None and config.server_optimiser not in optimisers:
            raise UserError(
                f"{name}={value:g}: server_optimiser={config.server_optimiser} doesn't use it; set server_optimiser to "
                f"{' or '.join(optimisers)}, or leave out {name}"
            )
    if config.weighting != "examples" and config.sampling == "by_examples":
        raise UserError(
            f"weighting={config.weighting}: sampling=by_examples weighs every draw the same; leave one of them out"
        )
    federated = ("scaffold", "feddyn_alpha", "fednova", "proximal_mu", "local_epochs_range", "weighting")
    for name in federated if config.baseline is not None else ():
        if _is_set(config, name):
            raise UserError(
                f"{name}={getattr(config, name)}: belongs to federated training, which baseline={config.baseline} replaces; "
                "leave one of them out"
            )


def _is_set(config: "Config", name: str) -> bool:
    """Whether the key has another value than its default."""
    return bool(getattr(config, name) != getattr(type(config), name))


_PLAIN: dict[str, dict[str, Any]] = {  # what the algorithms of the papers have, by method
    "scaffold": {
        "optimiser": "sgd", "weighting": "uniform", "sampling": "uniform", "max_grad_norm": None, "proximal_mu": 0.0,
        "fednova": False, "feddyn_alpha": 0.0,
    },
    "feddyn_alpha": {
        "weighting": "uniform", "sampling": "uniform", "proximal_mu": 0.0, "fednova": False, "server_optimiser": "sgd",
        "server_learning_rate": None, "server_momentum": None,
    },
}  # fmt: skip


def _check_plain(config: "Config") -> None:
    """SCAFFOLD has plain SGD steps; SCAFFOLD and FedDyn have plain means over a cohort that is drawn uniformly."""
    for method, needed in _PLAIN.items():
        wrong = {name: value for name, value in needed.items() if getattr(config, name) != value}
        if _is_set(config, method) and wrong:
            found = " ".join(f"{name}={getattr(config, name)}" for name in wrong)
            remedy = " ".join(f"{name}={value}" for name, value in wrong.items())
            raise UserError(
                f"{method}={getattr(config, method)} {found}: the method's algorithm has none of these; set {remedy}"
            )
