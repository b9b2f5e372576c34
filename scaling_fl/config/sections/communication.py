"""Keys of communication: what travels between server and sites."""

from dataclasses import dataclass

from scaling_fl.config.key import key, one_of

UPLOADS = ("fp32", "bf16", "int8", "topk")
DOWNLOADS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class CommunicationKeys:
    """Communication."""

    trainable: str = key(
        "all",
        "parameters that are trained: all, head, lora (adapters and the head), or a regular expression that matches part of "
        "their names; the others keep their pre-trained values, don't travel and aren't in checkpoints",
    )
    upload: str = key(
        "fp32",
        "what a site sends of its delta: fp32, bf16, int8 (both rounded at random), or topk (the largest values only)",
        **one_of(UPLOADS),
    )
    topk_share: float = key(
        0.01,
        "for `upload=topk`: share of the values that a site sends",
        "a number above 0, up to 1",
        lambda share: 0 < share <= 1,
    )
    error_feedback: bool = key(
        True, "True: what a compressed `upload` leaves out is kept at the site, and added to its next delta"
    )
    download: str = key(
        "fp32",
        "what the server sends of its parameters: fp32, bf16 or int8 (both rounded at random)",
        **one_of(DOWNLOADS),
    )
