"""Keys of models and training: what a site trains and how."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, NOT_NEGATIVE, SEED, at_least, key, one_of

# Elementwise optimisers only: each is run over the flat parameter buffer, whole (federated/local_optimiser.py) or matrix by
# matrix (federated/step_in_backward.py).
OPTIMISERS = ("adamw", "adam", "sgd", "adagrad", "rmsprop")
SCHEDULES = ("constant", "linear", "cosine")
BASELINES = ("local_only", "centralised")


@dataclass(frozen=True)
class TrainingKeys:
    """Models and training."""

    model: str = key("distilbert", "distilbert, bert, albert, tiny, a Hugging Face hub id, or a local folder")
    max_seq_len: int = key(
        128, "maximum tokens per text, special tokens included; longer texts are truncated", **at_least(4)
    )
    num_rounds: int = key(10, "rounds of local training and aggregation", **at_least(1), may_change=True)
    num_local_epochs: int = key(1, "passes that a site makes over its own shard in each round", **at_least(1))
    num_local_steps: int | None = key(
        None,
        "local steps of each site in each round, in the place of `num_local_epochs`; the next round continues with the "
        "site's next examples",
        **at_least(1),
    )
    local_epochs_range: tuple[int, ...] | None = key(
        None,
        "least and most local epochs, such as [1,5], in the place of `num_local_epochs`: each site's number is drawn anew in "
        "each round",
        "two whole numbers such as [1,5], the first 1 or more, the second not below the first",
        lambda span: len(span) == 2 and 1 <= span[0] <= span[1],
    )
    optimiser: str = key("adamw", "local optimiser: adamw, adam, sgd, adagrad or rmsprop", **one_of(OPTIMISERS))
    keep_optimiser: bool = key(
        False,
        "True: each site's local optimiser state is kept between rounds and in checkpoints; False: it is reset every round",
    )
    learning_rate: float = key(5e-5, "learning rate of the local optimiser", **ABOVE_0)
    lr_schedule: str = key(
        "constant",
        "learning-rate schedule over all rounds, after warm-up: constant, linear or cosine (linear and cosine fall to `final_learning_rate`)",
        **one_of(SCHEDULES),
    )
    final_learning_rate: float = key(
        0.0, "learning rate at the end of `lr_schedule=linear` and `cosine`, at most `learning_rate`", **NOT_NEGATIVE
    )
    warmup: float = key(
        0.0,
        "rounds over which the learning rate rises to its full value; below 1: share of all rounds",
        **NOT_NEGATIVE,
    )
    max_grad_norm: float | None = key(
        None, "maximum norm to which the gradient is clipped in each local step; default: no clipping", **ABOVE_0
    )
    weight_decay: float = key(
        0.0,
        "weight decay of the local optimiser; biases and normalisation layers are exempt",
        **NOT_NEGATIVE,
    )
    batch_size: int = key(32, "examples per local step", **at_least(1))
    gradient_accumulation_steps: int = key(
        1,
        "micro-batches that each batch of `batch_size` is split into, to save memory; the step itself is the same",
        **at_least(1),
    )
    group_by_length: bool = key(
        True,
        "True: texts of similar length are batched together, within shuffled windows of 50 batches; False: plain shuffle",
    )
    baseline: str | None = key(
        None,
        "replaces federated averaging: local_only (sites train independently) or centralised (one site trains on all data)",
        f"one of {', '.join(BASELINES)}",
        BASELINES.__contains__,
    )
    eval_every: int = key(
        1,
        "rounds between evaluations of the global model; the start (round 0) and the last round are always evaluated",
        **at_least(1),
        may_change=True,
    )
    val_batch_size: int = key(
        512,
        "maximum examples per evaluation batch; fewer for small test sets, and if a GPU runs out of memory",
        **at_least(1),
        may_change=True,
    )
    seed: int = key(
        20210201,
        "random seed of the new classification head, the order of examples, dropout and the sites of each round",
        **SEED,
    )
    data_seed: int = key(
        58923, "random seed of the choice of rows (`max_…_examples`, `…_fraction`) and of the shards", **SEED
    )
