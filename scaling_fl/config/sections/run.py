"""Keys of jobs and hardware: names, checkpoints, failures, precision, threads."""

import re
from dataclasses import dataclass

from scaling_fl.config.key import at_least, key, one_of

VERBOSITIES = ("quiet", "normal", "verbose")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CHECKPOINTS = "checkpoints/{job_name}"  # the default, relative to the current folder, as runs/ is
BEST_BY = (
    *(
        f"{split}.{metric}"
        for split in ("validation", "held_back")
        for metric in ("loss", "accuracy", "macro_f1", "perplexity", "bits_per_byte")
    ),
    "validation.choice_accuracy",
    "validation.choice_accuracy_per_token",
)


@dataclass(frozen=True)
class RunKeys:
    """Jobs, checkpoints and hardware."""

    job_name: str | None = key(
        None,
        "name of the job; running the same name again resumes from `checkpoints_dir`; default: a new name every time",
        "letters, digits, '.', '_' and '-', beginning with a letter or digit",
        lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None,
    )
    checkpoints_dir: str | None = key(
        CHECKPOINTS,
        "folder for checkpoints and the final model: local, s3:// or gs://; `{job_name}` stands for the job's name; None: "
        "neither is saved",
        may_change=True,
    )
    checkpoint_every: int = key(
        1, "rounds between checkpoints; the last round is always saved", **at_least(1), may_change=True
    )
    keep_checkpoints: int | None = key(
        None,
        "number of most recent checkpoints to keep; 0: all; default: 2 while the job runs, and the last once it is finished",
        **at_least(0),
        may_change=True,
    )
    keep_best: str | None = key(
        None,
        "also keep the checkpoint of the best round by this metric, such as `held_back.accuracy` or `validation.loss`",
        **one_of(BEST_BY),
        may_change=True,
    )
    export: str = key(
        "last",
        "which rounds' models a finished job writes as Hugging Face folders: last (`model`), best (`model-best`, chosen by "
        "`keep_best`) or both",
        **one_of(("last", "best", "both")),
        may_change=True,
    )
    generate_examples: int = key(
        0,
        "for language models: number of test rows to which the last round's model writes its response, for the record and its "
        "page",
        **at_least(0),
        may_change=True,
    )
    max_restarts: int = key(
        0,
        "maximum number of times that all sites are restarted from the last checkpoint after a failure",
        **at_least(0),
        may_change=True,
    )
    stall_timeout: float = key(
        600.0,
        "seconds without progress after which a process counts as hung and the job fails",
        "a number from 1 to 1000000",
        lambda seconds: 1 <= seconds <= 1e6,
        may_change=True,
    )
    tensorboard_dir: str | None = key(
        None,
        "folder for TensorBoard's event files, local, s3:// or gs://; each job has a folder in it; needs the package "
        "tensorboard; default: AIP_TENSORBOARD_LOG_DIR on Vertex AI",
        may_change=True,
    )
    report: bool = key(
        True,
        "True: at the end of the job, record the predictions for the test set and write the page `report.html`",
        may_change=True,
    )
    verbosity: str = key(
        "normal",
        "what the console shows: quiet (notes, the last round and errors), normal, or verbose (also each site's metrics and "
        "the seconds of each phase)",
        **one_of(VERBOSITIES),
        may_change=True,
    )
    author: str | None = key(None, "who runs the job; saved in its record", may_change=True, may_be_empty=True)
    precision: str = key(
        "auto",
        "precision of forward and backward passes: fp32, bf16, fp16 or auto (bf16 on GPUs that support it, otherwise fp32); "
        "parameters stay float32",
        **one_of(PRECISIONS),
    )
    tf32: bool = key(
        False, "True: GPUs may round the inputs of fp32 matrix products to 10 mantissa bits (TF32), which is faster"
    )
    deterministic: bool = key(
        False,
        "True: GPUs use deterministic algorithms alone, so that the same command on the same kind of GPU gives the same bits; "
        "slower. CPUs always do",
    )
    compile: bool = key(
        False, "True: compile the model with torch.compile; takes a minute or two at the start and needs a C++ compiler"
    )
    gradient_checkpointing: bool = key(
        False, "True: recompute activations in the backward pass, which saves memory and costs time"
    )
    threads_per_site: int | None = key(
        None,
        "CPU threads per process; default: cores ÷ processes",
        "a whole number from 1 to 1024",
        lambda number: 1 <= number <= 1024,
        may_change=True,
    )
