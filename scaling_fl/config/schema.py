"""The configuration of a run: plain values, validated once, with messages that name key, value and remedy."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from scaling_fl.config import constraints
from scaling_fl.config.parsing import checked
from scaling_fl.data import partitioners, tasks
from scaling_fl.errors import UserError

# Elementwise optimisers only: each is run as one kernel over the flat parameter buffer (site.py).
OPTIMISERS = ("adamw", "adam", "sgd", "adagrad", "rmsprop")
SERVER_OPTIMISERS = ("sgd", "adam", "yogi", "adagrad")
SCHEDULES = ("constant", "linear", "cosine")
BASELINES = ("local_only", "centralised")
SAMPLINGS = ("uniform", "by_examples")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
BEST_BY = tuple(f"{of}.{what}" for of in ("validation", "held_back") for what in ("loss", "accuracy", "macro_f1"))


def _key(
    default: Any, help: str, expected: str = "", valid: Callable[[Any], bool] | None = None, free: bool = False
) -> Any:
    """A configuration key: `valid` values are `expected`; a `free` one may change when a job is resumed."""
    return dataclasses.field(
        default=default, metadata={"help": help, "expected": expected, "valid": valid, "free": free}
    )


def _at_least(minimum: int) -> dict[str, Any]:
    return {"expected": f"a whole number, {minimum} or more", "valid": lambda value: value >= minimum}


def _one_of(values: tuple[str, ...]) -> dict[str, Any]:
    return {"expected": f"one of {', '.join(values)}", "valid": values.__contains__}


_ABOVE_0: dict[str, Any] = {"expected": "a number above 0", "valid": lambda value: 0 < value < float("inf")}
_SEED: dict[str, Any] = {
    "expected": "a whole number from 0 to 4294967295",
    "valid": lambda value: 0 <= value < 2**32,
}  # numpy's limit


@dataclass(frozen=True)
class Config:
    """Everything that a run is told. `from_mapping` is the only way in for values that a user typed."""

    site_ids: tuple[int, ...] = _key(
        (0, 0),
        "one process per entry: the index of its GPU; -1 is the CPU",
        "a list of GPU indices such as [0,0,1,1], where -1 is the CPU and GPUs and CPU don't mix",
        lambda ids: len(ids) > 0 and (all(i >= 0 for i in ids) or all(i == -1 for i in ids)),
        free=True,  # but not the number of sites: see resume.py
    )
    num_sites: int | None = _key(
        None, "sites in all, hosted by the processes of `site_ids`; default: one per entry", **_at_least(1), free=True
    )
    sites_per_round: int | None = _key(None, "sites that take part in a round; default: all", **_at_least(1))
    participation: float | None = _key(
        None,
        "the same as a share of all sites",
        "a number above 0, up to 1",
        lambda share: 0 < share <= 1,
    )
    sampling: str = _key(
        "uniform",
        "how those are drawn: uniform, or by_examples (in proportion to them; each draw weighs the same, and repeats count)",
        f"one of {', '.join(SAMPLINGS)}",
        SAMPLINGS.__contains__,
    )
    exact_sum: bool = _key(
        True,
        "True: deltas are summed in fixed point, so that the result doesn't depend on which process trained which site",
    )
    baseline: str | None = _key(
        None,
        "instead of federated averaging: local_only (each site trains on alone) or centralised (one site has all data)",
        f"one of {', '.join(BASELINES)}",
        BASELINES.__contains__,
    )
    num_rounds: int = _key(10, "rounds of local training and aggregation", **_at_least(1), free=True)
    num_local_epochs: int = _key(1, "passes over its own shard that a site makes in a round", **_at_least(1))
    partition: str | None = _key(
        None,
        "who holds what: iid (the default), by_label, dirichlet, labels_per_site, sizes or column; see Sites",
        **_one_of(partitioners.PARTITIONS),
        free=True,  # but not what it and `iid_split` mean: see resume.py
    )
    iid_split: bool | None = _key(None, "short for a partition: True for iid, False for by_label", free=True)
    alpha: float | None = _key(
        None,
        "dirichlet: the smaller, the fewer labels a site has much of",
        "a number above 0 (from 1e-9 to 1e9)",
        lambda alpha: 1e-9 <= alpha <= 1e9,
    )
    balanced: bool = _key(False, "dirichlet: True gives all sites the same size; False draws that, too")
    labels_per_site: int | None = _key(
        None, "labels_per_site: pieces of one label, mostly, that each site gets", **_at_least(1)
    )
    size_law: str | None = _key(None, "sizes: lognormal (the default) or power", **_one_of(partitioners.SIZE_LAWS))
    size_skew: float | None = _key(
        None, "sizes: sigma of the logarithms, or minus the exponent of the power law; default: 1", **_ABOVE_0
    )
    partition_column: str | None = _key(
        None, "column: the training file's column whose values are the sites (agnews, csv, hub, spooky_author, yelp)"
    )
    min_examples_per_site: int = _key(
        1, "sites that draw fewer get some from the largest; by a column they can't: it is refused", **_at_least(1)
    )
    task_name: str = _key(
        "agnews",
        "the task: agnews, csv, demo, hub, imdb, spooky_author or yelp; see Tasks",
        f"one of {', '.join(tasks.names())}",
        lambda name: name in tasks.names(),
    )
    train_path: str | None = _key(None, "training file or files; see Tasks", free=True)
    test_path: str | None = _key(None, "test file or files", free=True)
    text_column: str | None = _key(
        None, "column that holds the text; agnews: Description (default), Title or Title+Description"
    )
    text_pair_column: str | None = _key(
        None, "column that holds the second of two texts, for tasks on pairs (csv, hub)"
    )
    label_column: str | None = _key(None, "column that holds the label: words or whole numbers (csv, hub)")
    dataset: str | None = _key(
        None, "hub id of a data set, or a folder that the package `datasets` saved (hub)", free=True
    )
    dataset_config: str | None = _key(None, "which of the data set's configurations, if it has several (hub)")
    train_split: str = _key("train", "the training data: a split, or a part of one such as `train[:80%]` (hub)")
    test_split: str = _key("test", "the test data, likewise (hub)")
    keep_br_tags: bool = _key(False, "imdb: True keeps the reviews' `<br />`; False puts a space in its place")
    max_train_examples: int | None = _key(
        None, "train on so many rows only, drawn with `data_seed` in the proportions of the labels", **_at_least(1)
    )
    max_test_examples: int | None = _key(None, "test on so many rows only, drawn likewise", **_at_least(1))
    validation_fraction: float = _key(
        0.0,
        "share of the training rows that no site trains on, drawn with `data_seed` like those; they yield `held_back.…`",
        "a number from 0 to less than 1",
        lambda share: 0 <= share < 1,
    )
    model: str = _key("distilbert", "distilbert, bert, albert, tiny, a hub id, or a local folder")
    max_seq_len: int = _key(128, "tokens kept of each text, special tokens included", **_at_least(4))
    optimiser: str = _key("adamw", "local optimiser: adamw, adam, sgd, adagrad or rmsprop", **_one_of(OPTIMISERS))
    keep_optimiser: bool = _key(
        False,
        "True: each site keeps its optimiser's state from round to round, and in the checkpoints; False: a fresh one",
    )
    learning_rate: float = _key(5e-5, "of the local optimiser", **_ABOVE_0)
    lr_schedule: str = _key(
        "constant",
        "learning rate over all rounds, after warm-up: constant, linear or cosine (the last two fall to 0)",
        **_one_of(SCHEDULES),
    )
    warmup: float = _key(
        0.0,
        "the learning rate rises for so many rounds; below 1: for this share of all rounds",
        "a number, 0 or more",
        lambda w: 0 <= w < float("inf"),
    )
    max_grad_norm: float | None = _key(
        None, "gradients longer than this are cut to it, in each local step; default: never", **_ABOVE_0
    )
    weight_decay: float = _key(
        0.0,
        "of the local optimiser; biases and norms are spared",
        "a number, 0 or more",
        lambda d: 0 <= d < float("inf"),
    )
    server_optimiser: str = _key(
        "sgd",
        "what applies the mean delta: sgd (FedAvg; with server_momentum FedAvgM), adam, yogi or adagrad (FedAdam, …)",
        **_one_of(SERVER_OPTIMISERS),
    )
    server_learning_rate: float | None = _key(
        None, "of the server's optimiser; default: 1 for sgd, else 0.001", **_ABOVE_0
    )
    server_momentum: float | None = _key(
        None,
        "of the server's optimiser; default: 0.9 for adam and yogi, else 0",
        "a number from 0 to below 1",
        lambda momentum: 0 <= momentum < 1,
    )
    batch_size: int = _key(32, "examples per local step", **_at_least(1))
    gradient_accumulation_steps: int = _key(
        1, "parts in which a batch is computed, to save memory; the step is the same", **_at_least(1)
    )
    val_batch_size: int = _key(
        512,
        "examples per evaluation batch at most; fewer on small test sets, and where a GPU's memory is too small",
        **_at_least(1),
        free=True,
    )
    precision: str = _key(
        "auto",
        "of forward and backward passes: fp32, bf16, fp16 or auto (bf16 on GPUs that have it, else fp32); parameters stay float32",
        **_one_of(PRECISIONS),
    )
    tf32: bool = _key(False, "True: GPUs may round the factors of fp32 matrix products to 10 bits, which is faster")
    compile: bool = _key(
        False, "True: torch.compile the model, which takes a minute or two at the start and needs a C++ compiler"
    )
    gradient_checkpointing: bool = _key(
        False, "True: layers are computed again for the gradient, which saves memory and costs time"
    )
    group_by_length: bool = _key(
        True, "True: batches of similar lengths, formed inside shuffled windows of 50 batches; False: plain shuffle"
    )
    eval_every: int = _key(1, "rounds between evaluations; rounds 0 and last always", **_at_least(1), free=True)
    seed: int = _key(20210201, "drives new head, order of the examples, dropout", **_SEED)
    data_seed: int = _key(58923, "drives shards (and which rows `max_…_examples` keep)", **_SEED)
    threads_per_site: int | None = _key(
        None,
        "CPU threads of a site; default: cores ÷ sites",
        "a whole number from 1 to 1024",
        lambda number: 1 <= number <= 1024,
        free=True,
    )
    job_name: str | None = _key(
        None,
        "name of the job; the same name resumes from `checkpoints_dir`; default: a new one each time",
        "letters, digits, '.', '_' and '-', beginning with a letter or digit",
        lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None,
    )
    checkpoints_dir: str | None = _key(None, "folder for checkpoints and final model: local, s3:// or gs://", free=True)
    checkpoint_every: int = _key(1, "rounds between checkpoints; the last round always", **_at_least(1), free=True)
    keep_checkpoints: int = _key(3, "the newest so many checkpoints are kept; 0: all", **_at_least(0), free=True)
    keep_best: str | None = _key(
        None,
        "metric by which the best round's checkpoint is kept besides: `held_back.accuracy`, `validation.loss` …",
        **_one_of(BEST_BY),
        free=True,
    )
    max_restarts: int = _key(
        0,
        "after a failure all sites are started again from the last checkpoint, so many times at most",
        **_at_least(0),
        free=True,
    )
    stall_timeout: float = _key(
        600.0,
        "seconds without progress after which a process counts as hung, and the job as failed",
        "a number from 1 to 1000000",
        lambda seconds: 1 <= seconds <= 1e6,
        free=True,
    )
    author: str | None = _key(None, "who runs this; recorded", free=True)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "Config":
        """Validate what the user typed.

        Raises `UserError` at the first key that is unknown, of the wrong type, or out of range.
        """
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in fields:
                close = difflib.get_close_matches(name, fields, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the keys are {', '.join(fields)}"
                raise UserError(f"{name}={values[name]!r}: there is no such key; {hint}")
        hints = typing.get_type_hints(cls)
        config = cls(**{name: checked(fields[name], hints[name], value) for name, value in values.items()})
        constraints.check(config)
        return config

    def to_mapping(self) -> dict[str, Any]:
        """Plain values (lists, not tuples), as Sacred and JSON want them."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @property
    def has_global_model(self) -> bool:
        """Whether there is one in the end."""
        return self.baseline != "local_only"

    @property
    def sites_keep(self) -> bool:
        """Whether sites keep anything from round to round."""
        return self.keep_optimiser or not self.has_global_model

    def checkpoints(self, round_: int) -> bool:
        """Whether a checkpoint is written after `round_`."""
        due = round_ > 0 and (round_ % self.checkpoint_every == 0 or round_ == self.num_rounds)
        return due and self.checkpoints_dir is not None

    def evaluates(self, round_: int) -> bool:
        """Whether the global model is evaluated after `round_`."""
        return round_ % self.eval_every == 0 or round_ == self.num_rounds

    def evaluation_batch_size(self, num_examples: int) -> int:
        """Small sets are cut finer, so that no worker is idle: into 64 batches, unless they fall below 32 examples."""
        return min(self.val_batch_size, max(32, -(-num_examples // 64)))
