"""Models and training: what a site trains, how, and what the server does with its delta."""

from dataclasses import dataclass

from scaling_fl.config.key import ABOVE_0, SEED, at_least, key, one_of

# Elementwise optimisers only: each is run as one kernel over the flat parameter buffer (federated/local_optimiser.py).
OPTIMISERS = ("adamw", "adam", "sgd", "adagrad", "rmsprop")
SERVER_OPTIMISERS = ("sgd", "adam", "yogi", "adagrad")
SCHEDULES = ("constant", "linear", "cosine")
BASELINES = ("local_only", "centralised")


@dataclass(frozen=True)
class TrainingKeys:
    """Models and training."""

    model: str = key("distilbert", "distilbert, bert, albert, tiny, a hub id, or a local folder")
    max_seq_len: int = key(128, "tokens kept of each text, special tokens included", **at_least(4))
    num_rounds: int = key(10, "rounds of local training and aggregation", **at_least(1), free=True)
    num_local_epochs: int = key(1, "passes over its own shard that a site makes in a round", **at_least(1))
    optimiser: str = key("adamw", "local optimiser: adamw, adam, sgd, adagrad or rmsprop", **one_of(OPTIMISERS))
    keep_optimiser: bool = key(
        False,
        "True: each site keeps its optimiser's state from round to round, and in the checkpoints; False: a fresh one",
    )
    learning_rate: float = key(5e-5, "of the local optimiser", **ABOVE_0)
    lr_schedule: str = key(
        "constant",
        "learning rate over all rounds, after warm-up: constant, linear or cosine (the last two fall to 0)",
        **one_of(SCHEDULES),
    )
    warmup: float = key(
        0.0,
        "the learning rate rises for so many rounds; below 1: for this share of all rounds",
        "a number, 0 or more",
        lambda w: 0 <= w < float("inf"),
    )
    max_grad_norm: float | None = key(
        None, "gradients longer than this are cut to it, in each local step; default: never", **ABOVE_0
    )
    weight_decay: float = key(
        0.0,
        "of the local optimiser; biases and norms are spared",
        "a number, 0 or more",
        lambda d: 0 <= d < float("inf"),
    )
    batch_size: int = key(32, "examples per local step", **at_least(1))
    gradient_accumulation_steps: int = key(
        1, "parts in which a batch is computed, to save memory; the step is the same", **at_least(1)
    )
    group_by_length: bool = key(
        True, "True: batches of similar lengths, formed inside shuffled windows of 50 batches; False: plain shuffle"
    )
    server_optimiser: str = key(
        "sgd",
        "what applies the mean delta: sgd (FedAvg; with server_momentum FedAvgM), adam, yogi or adagrad (FedAdam, …)",
        **one_of(SERVER_OPTIMISERS),
    )
    server_learning_rate: float | None = key(
        None, "of the server's optimiser; default: 1 for sgd, else 0.001", **ABOVE_0
    )
    server_momentum: float | None = key(
        None,
        "of the server's optimiser; default: 0.9 for adam and yogi, else 0",
        "a number from 0 to below 1",
        lambda momentum: 0 <= momentum < 1,
    )
    exact_sum: bool = key(
        True,
        "True: deltas are summed in fixed point, so that the result doesn't depend on which process trained which site",
    )
    baseline: str | None = key(
        None,
        "instead of federated averaging: local_only (each site trains on alone) or centralised (one site has all data)",
        f"one of {', '.join(BASELINES)}",
        BASELINES.__contains__,
    )
    eval_every: int = key(1, "rounds between evaluations; rounds 0 and last always", **at_least(1), free=True)
    val_batch_size: int = key(
        512,
        "examples per evaluation batch at most; fewer on small test sets, and where a GPU's memory is too small",
        **at_least(1),
        free=True,
    )
    seed: int = key(20210201, "drives new head, order of the examples, dropout", **SEED)
    data_seed: int = key(58923, "drives shards (and which rows `max_…_examples` keep)", **SEED)
