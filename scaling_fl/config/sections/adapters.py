"""Keys of LoRA adapters."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, at_least, key, one_of

LORA_AGGREGATIONS = ("separate", "freeze_a", "alternate")


@dataclass(frozen=True)
class AdapterKeys:
    """LoRA."""

    lora_rank: int = key(8, "for `trainable=lora`: columns of A and rows of B", **at_least(1))
    lora_alpha: float | None = key(
        None, "scale of the adapters: B A counts alpha / rank times; default: twice the rank", **ABOVE_0
    )
    lora_dropout: float = key(
        0.0, "dropout of the adapters' input", "a number from 0, below 1", lambda share: 0 <= share < 1
    )
    lora_targets: str = key(
        "all-linear",
        "layers with adapters: all-linear (all but the classification head), or a regular expression that matches part of "
        "their names, such as query|value",
    )
    lora_aggregation: str = key(
        "separate",
        "what sites train of A and B: separate (both, each with its own mean), freeze_a (B alone) or alternate (B and A in "
        "turn, round by round); see docs/models.md",
        **one_of(LORA_AGGREGATIONS),
    )
