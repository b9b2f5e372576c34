"""Constraints between keys: values that are valid alone, but not together."""

from typing import TYPE_CHECKING

from scaling_fl.config import adapter_constraints, method_constraints
from scaling_fl.config.partition_keys import check_partition_keys
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config


def check(config: "Config") -> None:
    """Raise `UserError` at the first keys that contradict each other, or require another key."""
    check_partition_keys(config.to_mapping())
    _check_sites(config)
    method_constraints.check(config)
    adapter_constraints.check(config)
    if config.final_learning_rate > 0 and config.lr_schedule == "constant":
        raise UserError(
            f"final_learning_rate={config.final_learning_rate:g}: lr_schedule=constant keeps the rate; set lr_schedule=cosine or "
            "linear as well"
        )
    if config.final_learning_rate > config.learning_rate:
        raise UserError(
            f"final_learning_rate={config.final_learning_rate:g}: above learning_rate={config.learning_rate:g}; lower it"
        )
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
        raise UserError(f"export={config.export}: {config.no_global_model} has no global model; leave out export")
    if config.generate_examples and not config.has_global_model:
        raise UserError(
            f"generate_examples={config.generate_examples}: {config.no_global_model} has no global model, which would write them; "
            "leave out generate_examples"
        )
    if "choice_accuracy" in str(config.keep_best) and config.choices_column is None:
        raise UserError(f"keep_best={config.keep_best}: there are no choices; set choices_column as well")
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
