"""Keys of LoRA adapters."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, at_least, key, one_of

ADDING = ("exact", "stack")  # to the base
LORA_AGGREGATIONS = ("separate", "freeze_a", "alternate", "share_a", *ADDING, "svd")
BASE_PRECISIONS = ("fp32", "bf16", "nf4")
OF_PRODUCTS = (*ADDING, "svd")  # those that start from the mean of B A


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
    modules_to_save: str | None = key(
        None,
        "layers that are trained whole beside the adapters, and the head of a classifier: a regular expression that matches part "
        "of their names, such as lm_head|embed_tokens",
    )
    base_precision: str = key(
        "fp32",
        "for a `trainable` part: how the frozen matrices are stored: fp32; bf16, in half the memory; or, beside adapters, nf4 "
        "(four bits, as QLoRA; the package bitsandbytes)",
        **one_of(BASE_PRECISIONS),
    )
    merge: bool = key(
        True,
        "for `trainable=lora`: True: the exported model has the adapters merged into its weights; False: the folder `model` holds "
        "the adapters alone, in `adapter`, without the weights of the base",
        may_change=True,
    )
    lora_ranks: tuple[int, ...] | None = key(
        None,
        "ranks of the sites' adapters, at most `lora_rank`, dealt in turn: 4,8,16 gives site 0 rank 4 and site 3 rank 4 again; "
        "the other rows of A and columns of B are 0 at the site",
        "whole numbers such as [4,8,16], 1 or more",
        lambda ranks: len(ranks) > 0 and min(ranks) >= 1,
    )
    lora_aggregation: str = key(
        "separate",
        "what sites train of A and B, and how they become one: separate (both, each with its own mean), freeze_a (B alone), "
        "alternate (B and A in turn, round by round), share_a (B and head stay at the site), exact (what the means of A and B "
        "miss is added to the base), stack (the mean of B A is added to the base, and adapters begin anew) or svd (B A of the "
        "same rank that is closest to the mean of B A); see docs/models.md",
        **one_of(LORA_AGGREGATIONS),
    )
    lora_delta_rank: int | None = key(
        None,
        "for `lora_aggregation=exact` and `stack`: rank of what is added to the base, beyond which it is cut; default: that of "
        "the weights, so that nothing is cut",
        **at_least(1),
    )
