"""Keys of studies: what a study varies or measures to explain results, and nobody needs to train a model."""

from dataclasses import dataclass

from scaling_fl.config.key import key, one_of

HEADS = ("shared", "independent")


@dataclass(frozen=True)
class StudyKeys:
    """Studies."""

    case: str | None = key(
        None,
        "a name for the job's settings in tables and pictures, in the place of the keys that jobs of this name share; sweeps "
        "set it for `cases`",
        may_change=True,
    )
    head_init: str = key(
        "shared",
        "how sites begin round 1: `shared`, with the same new parameters (the classification head); `independent`, each with "
        "its own random ones, as in the 2021 code",
        **one_of(HEADS),
    )
    attention_mask: bool = key(
        True, "False: the model gets no attention masks, so that padding counts as text, as in the 2021 code"
    )
    log_gradient_norms: bool = key(
        False,
        "True: after each round, record the norms of the global model's gradient by layer, on 64 fixed training examples",
        may_change=True,
    )
