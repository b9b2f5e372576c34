"""Constraints between the keys of LoRA adapters and others."""

from typing import TYPE_CHECKING

from scaling_fl.config.method_constraints import is_set
from scaling_fl.errors import UserError

if TYPE_CHECKING:
    from scaling_fl.config.schema import Config


def check(config: "Config") -> None:
    """Raise `UserError` at the first keys that contradict each other, or require another key."""
    for name in ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_aggregation"):
        if is_set(config, name) and config.trainable != "lora":
            raise UserError(
                f"{name}={getattr(config, name)}: belongs to trainable=lora; set it as well, or leave out {name}"
            )
    for name in ("keep_optimiser", "weight_decay", "scaffold", "feddyn_alpha"):
        if is_set(config, name) and config.lora_aggregation == "alternate":
            raise UserError(
                f"lora_aggregation=alternate {name}={getattr(config, name)}: it would move the matrix that rests in a round; "
                f"leave out {name}, or set lora_aggregation=separate"
            )
