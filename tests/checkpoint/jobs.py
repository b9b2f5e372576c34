"""Jobs that are interrupted and resumed: number of processes, whether shards are IID, schedule, further keys."""

from typing import Any

from scaling_fl.config.adapter_constraints import ALL_BUT_A

JOBS: list[tuple[int, bool, str, dict[str, Any]]] = [
    (1, True, "linear", {"gradient_accumulation_steps": 3, "validation_fraction": 0.2}),
    (4, True, "cosine", {"gradient_accumulation_steps": 2, "num_local_epochs": 2}),
    (4, True, "linear", {"server_optimiser": "adam", "keep_optimiser": True}),
    (2, True, "constant", {"num_sites": 9, "participation": 0.4, "keep_optimiser": True}),
    (2, False, "linear", {"num_sites": 5, "sites_per_round": 3, "sampling": "by_examples", "exact_sum": False}),
    (2, True, "linear", {"num_sites": 3, "baseline": "local_only", "keep_optimiser": True}),
    (2, True, "linear", {
        "num_sites": 5, "sites_per_round": 3, "scaffold": "II", "optimiser": "sgd", "weighting": "uniform",
        "server_momentum": 0.9,
    }),
    (2, True, "constant", {
        "num_sites": 3, "upload": "int8", "download": "bf16", "fairness_q": 1.0, "optimiser": "sgd",
    }),
    (2, False, "linear", {
        "num_sites": 4, "aggregation": "trimmed_mean", "faulty_sites": 1, "weighting": "uniform", "attack":
        "gaussian", "attackers": 1, "server_momentum": 0.9, "upload": "topk",
    }),
    (2, True, "constant", {
        "num_sites": 4, "weighting": "uniform", "dp_clip": 0.1, "dp_noise_multiplier": 0.5, "dp_delta": 0.001,
        "dp_clip_quantile": 0.5, "dp_seed": 4, "sampling": "poisson", "participation": 0.5,
    }),
    (2, True, "linear", {
        "num_sites": 3, "trainable": "lora", "lora_rank": 2, "lora_dropout": 0.1, "keep_optimiser": True, "server_momentum": 0.9,
    }),
    (2, False, "constant", {
        "num_sites": 3, "sites_per_round": 2, "trainable": "lora", "lora_rank": 2, "lora_aggregation": "exact",
        "keep_optimiser": True, "lora_ranks": (1, 2),
    }),
    (2, True, "linear", {
        "num_sites": 3, "trainable": "lora", "lora_rank": 2, "lora_aggregation": "stack", "lora_delta_rank": 3,
    }),
    (2, False, "linear", {
        "num_sites": 3, "trainable": "lora", "lora_rank": 2, "lora_aggregation": "share_a", "site_test": "held_back",
        "personal": ALL_BUT_A,
    }),
    (2, True, "linear", {
        "task_name": "lm", "label_column": None, "model": "tiny", "num_sites": 3, "trainable": "lora", "lora_rank": 2,
        "keep_optimiser": True, "validation_fraction": 0.2,
    }),
    (2, True, "cosine", {
        "task_name": "instructions", "text_column": None, "label_column": None, "prompt_column": "body", "response_column": "topic",
        "prompt_template": "{prompt} : {response}", "model": "tiny", "num_sites": 3, "weighting": "tokens", "sites_per_round": 2,
        "max_seq_len": 32, "trainable": "lora", "lora_rank": 2, "lora_aggregation": "stack",
    }),
    (2, False, "linear", {"num_sites": 3, "personal": "head", "site_test": "partitioned", "upload": "bf16"}),
    (1, True, "constant", {"num_sites": 3, "ditto_lambda": 0.5, "site_test": "held_back", "sites_per_round": 2}),
    (2, False, "linear", {
        "num_sites": 3, "num_local_steps": 3, "weighting": "sqrt", "proximal_mu": 0.5, "keep_optimiser": True,
        "server_momentum": 0.9, "server_nesterov": True,
    }),
]  # fmt: skip
# Other methods that keep the same kinds of state.
MORE_JOBS: list[tuple[int, bool, str, dict[str, Any]]] = [
    (4, False, "linear", {"validation_fraction": 0.1, "max_grad_norm": 0.5}),
    (1, False, "constant", {"optimiser": "sgd", "server_momentum": 0.9}),
    (1, False, "constant", {"keep_optimiser": True, "optimiser": "rmsprop"}),
    (4, False, "constant", {"keep_optimiser": True, "optimiser": "adagrad", "weight_decay": 0.01}),
    (1, False, "cosine", {"server_optimiser": "yogi", "server_learning_rate": 0.01}),
    (1, True, "constant", {"num_sites": 3, "baseline": "centralised"}),
    (2, True, "linear", {"num_sites": 3, "local_epochs_range": (1, 3), "fednova": True, "optimiser": "sgd"}),
    (2, False, "cosine", {"num_sites": 5, "sites_per_round": 3, "feddyn_alpha": 0.5, "weighting": "uniform"}),
    (2, True, "constant", {
        "num_sites": 4, "secure_aggregation": True, "secure_dropout": 0.2, "secure_threshold": 1, "server_momentum": 0.9,
    }),
    (2, True, "constant", {
        "num_sites": 3, "trainable": "lora", "lora_rank": 2, "lora_aggregation": "svd", "upload": "int8",
    }),
    (2, False, "linear", {"num_sites": 3, "trainable": "head", "site_test": "held_back", "fine_tune_steps": 2}),
    (1, False, "constant", {"num_sites": 3, "scaffold": "I", "optimiser": "sgd", "weighting": "uniform"}),
]  # fmt: skip
