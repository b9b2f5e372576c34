"""Every pair of keys that contradict each other, by the method that can't have the other key."""

import re
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError

DP: dict[str, Any] = {"dp_clip": 1.0, "dp_noise_multiplier": 1.0, "dp_delta": 1e-5, "weighting": "uniform"}
UNIFORM = {"weighting": "uniform"}
SGD = {"optimiser": "sgd"}
LORA = {"trainable": "lora"}
# By key, values other than the default, which are valid as they stand (beside trainable=lora, if the key is its).
VALUES: dict[str, dict[str, Any]] = {
    "aggregation": {"aggregation": "geometric_median"},
    "attack": {"attack": "scale", "attackers": 1},
    "ditto_lambda": {"ditto_lambda": 0.5, "site_test": "held_back"},
    "download": {"download": "int8"},
    "dp_clip": DP,
    "exact_sum": {"exact_sum": False},
    "fairness_q": SGD | {"fairness_q": 1.0},
    "feddyn_alpha": UNIFORM | {"feddyn_alpha": 0.1},
    "fednova": SGD | {"fednova": True},
    "fine_tune_steps": {"fine_tune_steps": 2, "site_test": "held_back"},
    "keep_optimiser": {"keep_optimiser": True},
    "local_epochs_range": {"local_epochs_range": [1, 2]},
    "lora_ranks": {"lora_ranks": [1, 2]},
    "max_grad_norm": {"max_grad_norm": 1.0},
    "optimiser": {"optimiser": "rmsprop"},
    "personal": {"personal": "head"},
    "proximal_mu": {"proximal_mu": 0.5},
    "sampling": {"sampling": "by_examples", "sites_per_round": 1},
    "scaffold": SGD | UNIFORM | {"scaffold": "II"},
    "secure_aggregation": {"secure_aggregation": True},
    "server_learning_rate": {"server_learning_rate": 0.5},
    "server_momentum": {"server_momentum": 0.5},
    "server_optimiser": {"server_optimiser": "adam"},
    "upload": {"upload": "bf16"},
    "weight_decay": {"weight_decay": 0.1},
    "weighting": {"weighting": "sqrt"},
}
OF_PRODUCTS = (
    "personal aggregation secure_aggregation dp_clip fairness_q fednova feddyn_alpha server_optimiser server_learning_rate "
    "server_momentum download"
)


@pytest.mark.parametrize(
    ("method", "keys", "others"),
    [
        # Karimireddy et al. 2020, and Acar et al. 2021: the mean over sites drawn uniformly.
        ("scaffold=II", VALUES["scaffold"], "optimiser max_grad_norm proximal_mu fednova feddyn_alpha weighting sampling"),
        ("feddyn_alpha=0.1", VALUES["feddyn_alpha"], "weighting sampling proximal_mu fednova server_optimiser server_learning_rate server_momentum"),
        ("fairness_q=1.0", VALUES["fairness_q"], "optimiser fednova scaffold feddyn_alpha"),
        ("personal=head", VALUES["personal"], "proximal_mu scaffold feddyn_alpha ditto_lambda fairness_q download"),
        ("dp_clip=1.0", DP, "fednova scaffold feddyn_alpha fairness_q personal aggregation exact_sum"),
        ("secure_aggregation=True", VALUES["secure_aggregation"], "fednova scaffold feddyn_alpha fairness_q dp_clip aggregation exact_sum upload"),
        ("aggregation=geometric_median", VALUES["aggregation"], "fednova scaffold feddyn_alpha fairness_q"),
        ("aggregation=median", UNIFORM | {"aggregation": "median"}, "weighting sampling"),
        ("aggregation=krum", UNIFORM | {"aggregation": "krum", "faulty_sites": 1}, "weighting sampling"),
        ("aggregation=trimmed_mean", UNIFORM | {"aggregation": "trimmed_mean", "faulty_sites": 1}, "weighting sampling"),
        ("head_init=independent", {"head_init": "independent"}, "scaffold feddyn_alpha fednova fairness_q dp_clip ditto_lambda"),
        ("baseline=centralised", {"baseline": "centralised"}, "scaffold feddyn_alpha fednova fairness_q proximal_mu local_epochs_range weighting aggregation attack upload download personal ditto_lambda secure_aggregation"),
        ("lora_aggregation=alternate", LORA | {"lora_aggregation": "alternate"}, "keep_optimiser weight_decay scaffold feddyn_alpha lora_ranks server_optimiser server_momentum dp_clip upload"),
        ("lora_aggregation=share_a", LORA | {"lora_aggregation": "share_a"}, "personal"),
        ("lora_aggregation=exact", LORA | {"lora_aggregation": "exact"}, OF_PRODUCTS),
        ("lora_aggregation=svd", LORA | {"lora_aggregation": "svd"}, OF_PRODUCTS),
        ("lora_aggregation=stack", LORA | {"lora_aggregation": "stack"}, f"{OF_PRODUCTS} keep_optimiser scaffold ditto_lambda"),
        ("lora_ranks", LORA | VALUES["lora_ranks"], "scaffold feddyn_alpha ditto_lambda fine_tune_steps upload download"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)  # fmt: skip
def test_a_method_is_refused_beside_each_key_that_it_does_not_have(
    method: str, keys: dict[str, Any], others: str
) -> None:
    Config.from_mapping(keys)
    for other in others.split():
        Config.from_mapping((LORA if "lora" in other else {}) | VALUES[other])
        with pytest.raises(UserError) as refusal:
            Config.from_mapping(keys | VALUES[other])
        assert method in str(refusal.value), other
        assert re.search(rf"(^| ){other}=", str(refusal.value)), other


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {
                "lora_rank": 4, "lora_alpha": 3.0, "lora_dropout": 0.1, "lora_targets": "query", "lora_ranks": [1],
                "lora_aggregation": "svd", "lora_delta_rank": 2, "modules_to_save": "pooler", "merge": False,
            },
            "belongs to trainable=lora; set it as well, or leave out",
        ),
        (
            {
                "dp_noise_multiplier": 1.0, "dp_epsilon": 2.0, "dp_delta": 1e-5, "dp_clip_quantile": 0.5,
                "dp_clip_rate": 0.3, "dp_count_noise": 1.0, "dp_seed": 2,
            },
            "there is no privacy without dp_clip; set it as well",
        ),
    ],
)  # fmt: skip
def test_a_key_that_nothing_would_use_is_refused(values: dict[str, Any], message: str) -> None:
    for name, value in values.items():
        with pytest.raises(UserError, match=rf"^{name}=.*: {message}"):
            Config.from_mapping({name: value})
