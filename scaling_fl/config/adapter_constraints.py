"""Constraints between the keys of LoRA adapters and others."""

import dataclasses
from typing import TYPE_CHECKING

from scaling_fl.config.method_constraints import is_set
from scaling_fl.config.sections.adapters import ADDING, OF_PRODUCTS
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config

_KEYS = (
    "lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_ranks", "lora_aggregation", "lora_delta_rank",
    "modules_to_save", "merge",
)  # fmt: skip
ALL_BUT_A = (
    r"^(?!.*\.lora_A\.)"  # the trained parameters that `share_a` leaves at the sites, as `personal` selects them
)

# What can't be set beside a lora_aggregation, with the reason.
_REASONS = {
    "alternate": "it would move the matrix that rests in a round",
    "share_a": "B and the head stay at the sites",
    "products": "it starts from the adapters of each site as they are, and sets the server's parameters itself",
    "stack": "adapters begin anew in each round",
    "lora_ranks": "it would move the parameters beyond a site's rank",
}
_CONFLICTS = {
    "alternate": (
        "keep_optimiser", "weight_decay", "scaffold", "feddyn_alpha", "lora_ranks", "server_optimiser", "server_momentum",
        "dp_clip",
    ),
    "share_a": ("personal",),
    "products": (
        "personal", "aggregation", "secure_aggregation", "dp_clip", "fairness_q", "fednova", "feddyn_alpha",
        "server_optimiser", "server_learning_rate", "server_momentum", "download",
    ),
    "stack": ("keep_optimiser", "scaffold", "ditto_lambda"),
    "lora_ranks": ("scaffold", "feddyn_alpha", "ditto_lambda", "fine_tune_steps", "upload", "download"),
}  # fmt: skip


def resolved(config: "Config") -> "Config":
    """`config` with what `lora_aggregation=share_a` means for `personal`."""
    if config.lora_aggregation != "share_a" or config.personal is not None:
        return config
    return dataclasses.replace(config, personal=ALL_BUT_A)


def check(config: "Config") -> None:
    """Raise `UserError` at the first keys that contradict each other, or require another key."""
    for name in _KEYS:
        if is_set(config, name) and config.trainable != "lora":
            raise UserError(
                f"{name}={getattr(config, name)}: belongs to trainable=lora; set it as well, or leave out {name}"
            )
    if config.base_precision != "fp32" and config.trainable == "all":
        raise UserError(
            f"base_precision={config.base_precision}: every parameter is trained, so there is no frozen base; set trainable=lora "
            "or another part, or leave out base_precision"
        )
    if config.base_precision != "fp32" and config.model == "tiny":
        raise UserError(
            f"base_precision={config.base_precision} model=tiny: it has no pre-trained weights, so there is no base; leave out "
            "base_precision"
        )
    if not config.merge and config.model == "tiny":
        raise UserError(
            "merge=False model=tiny: it has no pre-trained weights that the adapters could be loaded beside; leave out merge"
        )
    if config.base_precision == "nf4" and config.trainable != "lora":
        raise UserError(
            f"base_precision=nf4 trainable={config.trainable}: four bits hold the layers that have adapters; set trainable=lora, "
            "or base_precision=bf16"
        )
    if config.base_precision == "bf16" and config.precision not in ("auto", "bf16"):
        raise UserError(
            f"base_precision=bf16 precision={config.precision}: products of bf16 matrices are computed in bf16; leave out "
            "precision"
        )
    how = config.lora_aggregation
    for name in _CONFLICTS.get(how, ()):
        _refuse(config, name, how)
    for name in _CONFLICTS["products"] if how in OF_PRODUCTS else ():
        _refuse(config, name, "products")
    if how == "alternate" and is_set(config, "upload") and config.error_feedback:
        raise UserError(
            f"lora_aggregation=alternate upload={config.upload}: what is left out is sent in the next round, in which the matrix "
            "rests; set error_feedback=False, or leave out upload"
        )
    if config.lora_ranks is not None:
        for name in _CONFLICTS["lora_ranks"]:
            _refuse(config, name, "lora_ranks")
        if max(config.lora_ranks) > config.lora_rank:
            raise UserError(
                f"lora_ranks={','.join(map(str, config.lora_ranks))}: lora_rank={config.lora_rank} is the largest that a site "
                f"can have; set lora_rank={max(config.lora_ranks)}"
            )
    if config.lora_delta_rank is not None and how not in ADDING:
        raise UserError(
            f"lora_delta_rank={config.lora_delta_rank}: belongs to lora_aggregation=exact or stack; leave it out"
        )


def _refuse(config: "Config", name: str, case: str) -> None:
    value, how = getattr(config, name), config.lora_aggregation
    if not is_set(config, name) or (case == "share_a" and value == ALL_BUT_A):
        return
    ours = f"lora_aggregation={how}" if case != "lora_ranks" else "lora_ranks"
    remedy = "leave out lora_ranks" if case == "lora_ranks" else "set lora_aggregation=separate"
    raise UserError(f"{ours} {name}={value}: {_REASONS[case]}; leave out {name}, or {remedy}")
