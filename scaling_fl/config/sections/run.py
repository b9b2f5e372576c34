"""Jobs: names, checkpoints, failures, and how the hardware is used."""

import re
from dataclasses import dataclass

from scaling_fl.config.key import at_least, key, one_of

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BEST_BY = tuple(f"{of}.{what}" for of in ("validation", "held_back") for what in ("loss", "accuracy", "macro_f1"))


@dataclass(frozen=True)
class RunKeys:
    """Jobs, checkpoints and hardware."""

    job_name: str | None = key(
        None,
        "name of the job; the same name resumes from `checkpoints_dir`; default: a new one each time",
        "letters, digits, '.', '_' and '-', beginning with a letter or digit",
        lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None,
    )
    checkpoints_dir: str | None = key(None, "folder for checkpoints and final model: local, s3:// or gs://", free=True)
    checkpoint_every: int = key(1, "rounds between checkpoints; the last round always", **at_least(1), free=True)
    keep_checkpoints: int = key(3, "the newest so many checkpoints are kept; 0: all", **at_least(0), free=True)
    keep_best: str | None = key(
        None,
        "metric by which the best round's checkpoint is kept besides: `held_back.accuracy`, `validation.loss` …",
        **one_of(BEST_BY),
        free=True,
    )
    max_restarts: int = key(
        0,
        "after a failure all sites are started again from the last checkpoint, so many times at most",
        **at_least(0),
        free=True,
    )
    stall_timeout: float = key(
        600.0,
        "seconds without progress after which a process counts as hung, and the job as failed",
        "a number from 1 to 1000000",
        lambda seconds: 1 <= seconds <= 1e6,
        free=True,
    )
    author: str | None = key(None, "who runs this; recorded", free=True)
    precision: str = key(
        "auto",
        "of forward and backward passes: fp32, bf16, fp16 or auto (bf16 on GPUs that have it, else fp32); parameters stay float32",
        **one_of(PRECISIONS),
    )
    tf32: bool = key(False, "True: GPUs may round the factors of fp32 matrix products to 10 bits, which is faster")
    compile: bool = key(
        False, "True: torch.compile the model, which takes a minute or two at the start and needs a C++ compiler"
    )
    gradient_checkpointing: bool = key(
        False, "True: layers are computed again for the gradient, which saves memory and costs time"
    )
    threads_per_site: int | None = key(
        None,
        "CPU threads of a site; default: cores ÷ sites",
        "a whole number from 1 to 1024",
        lambda number: 1 <= number <= 1024,
        free=True,
    )
