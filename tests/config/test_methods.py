"""Keys of methods that contradict each other, or that nothing would use."""

from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError

DP: dict[str, Any] = {"dp_clip": 1.0, "dp_noise_multiplier": 1.0, "dp_delta": 1e-5, "weighting": "uniform"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_local_steps": 3, "num_local_epochs": 2}, "num_local_epochs=2 num_local_steps=3: each sets the length"),
        (
            {"num_local_steps": 3, "local_epochs_range": [1, 2]},
            r"num_local_steps=3 local_epochs_range=\[1,2\]: each sets the length",
        ),
        ({"local_epochs_range": [3, 2]}, "local_epochs_range=.*: expected two whole numbers such as"),
        ({"local_epochs_range": [0, 2]}, "local_epochs_range=.*: expected two whole numbers such as"),
        ({"local_epochs_range": [1, 2, 3]}, "local_epochs_range=.*: expected two whole numbers such as"),
        (
            {"local_epochs_range": [1, 2], "baseline": "centralised"},
            "local_epochs_range=.* baseline=centralised replaces",
        ),
        (
            {"scaffold": "II", "weighting": "uniform", "max_grad_norm": 1.0},
            "scaffold=II optimiser=adamw max_grad_norm=1.0: .*; set optimiser=sgd max_grad_norm=None",
        ),
        ({"scaffold": "I", "optimiser": "sgd"}, "scaffold=I weighting=examples: .*; set weighting=uniform"),
        (
            {"feddyn_alpha": 0.1, "weighting": "uniform", "server_momentum": 0.9},
            "feddyn_alpha=0.1 server_momentum=0.9: .*; set server_momentum=None",
        ),
        ({"feddyn_alpha": 0.1}, "feddyn_alpha=0.1 weighting=examples: .*; set weighting=uniform"),
        ({"feddyn_alpha": -0.1}, "feddyn_alpha=-0.1: expected a number, 0 or more"),
        (
            {"feddyn_alpha": 0.1, "weighting": "uniform", "baseline": "centralised"},
            "feddyn_alpha=0.1: .* baseline=centralised replaces",
        ),
        ({"scaffold": "III"}, "scaffold='III': expected one of I, II"),
        (
            {"scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "proximal_mu": 1.0},
            "scaffold=I proximal_mu=1.0: .*; set proximal_mu=0.0",
        ),
        (
            {"scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "fednova": True},
            "scaffold=I fednova=True: .*; set fednova=False",
        ),
        (
            {"scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "baseline": "local_only"},
            "baseline=local_only replaces",
        ),
        ({"fednova": True}, "fednova=True optimiser=adamw: .*; set optimiser=sgd"),
        ({"fednova": True, "optimiser": "sgd", "baseline": "local_only"}, "baseline=local_only replaces"),
        ({"server_nesterov": True}, "server_nesterov=True: Nesterov's momentum .*; set server_momentum=0.9 as well"),
        ({"server_nesterov": True, "server_momentum": 0.0}, "set server_momentum=0.9 as well"),
        (
            {"server_nesterov": True, "server_momentum": 0.9, "server_optimiser": "adam"},
            "Nesterov's momentum belongs to server_optimiser=sgd",
        ),
        ({"server_beta2": 0.9}, "server_beta2=0.9: server_optimiser=sgd doesn't use it; .* to adam or yogi"),
        ({"server_beta2": 0.9, "server_optimiser": "adagrad"}, "server_optimiser=adagrad doesn't use it"),
        ({"server_tau": 0.1}, "server_tau=0.1: .* set server_optimiser to adam or yogi or adagrad, or leave out"),
        (
            {"weighting": "sqrt", "sampling": "by_examples", "sites_per_round": 1},
            "weighting=sqrt: sampling=by_examples weighs every draw the same",
        ),
        ({"weighting": "uniform", "baseline": "centralised"}, "weighting=uniform: .* baseline=centralised replaces"),
        ({"proximal_mu": 0.5, "baseline": "local_only"}, "proximal_mu=0.5: .* baseline=local_only replaces"),
        ({"fairness_q": 1.0}, "fairness_q=1.0 optimiser=adamw: .*; set optimiser=sgd"),
        ({"fairness_q": -1.0}, "fairness_q=-1.0: expected a number, 0 or more"),
        ({"upload": "bf16", "baseline": "centralised"}, "upload=bf16: .* baseline=centralised replaces"),
        ({"download": "bf16", "baseline": "local_only"}, "download=bf16: .* baseline=local_only replaces"),
        ({"download": "topk"}, "download='topk': expected one of fp32, bf16, int8"),
        ({"upload": "int8", "topk_share": 0.1}, "topk_share=0.1: belongs to upload=topk, not int8; leave out"),
        ({"upload": "topk", "topk_share": 0.0}, "topk_share=0.0: expected a number above 0, up to 1"),
        ({"error_feedback": False}, "error_feedback=False: upload=fp32 leaves nothing out; leave out error_feedback"),
        ({"aggregation": "krum"}, "aggregation=krum weighting=examples: .*; set weighting=uniform"),
        (
            {"aggregation": "median", "sampling": "by_examples", "sites_per_round": 1, "weighting": "uniform"},
            "aggregation=median sampling=by_examples: .*; set sampling=uniform",
        ),
        (
            {"aggregation": "geometric_median", "fednova": True, "optimiser": "sgd"},
            "aggregation=geometric_median fednova=True: .*; set fednova=False",
        ),
        (
            {"aggregation": "geometric_median", "fairness_q": 1.0, "optimiser": "sgd"},
            "aggregation=geometric_median fairness_q=1.0: .*; set fairness_q=0.0",
        ),
        ({"aggregation": "krum", "weighting": "uniform"}, "aggregation=krum: set faulty_sites as well"),
        ({"faulty_sites": 1}, "faulty_sites=1: belongs to aggregation=trimmed_mean or krum, not mean; leave out"),
        (
            {"aggregation": "trimmed_mean", "weighting": "uniform", "faulty_sites": 1, "krum_sites": 2},
            "krum_sites=2: belongs to aggregation=krum, not trimmed_mean; leave out krum_sites",
        ),
        ({"attack": "scale"}, "attack=scale: attackers is not set; set both, such as attack=sign_flip attackers=2"),
        ({"attackers": 1}, "attackers=1: attack is not set; set both, such as attack=sign_flip attackers=2"),
        (
            {"attackers": 1, "attack": "scale", "baseline": "centralised"},
            "attack=scale: .* baseline=centralised replaces",
        ),
        (
            {"attackers": 1, "attack": "label_flip", "attack_strength": 2},
            "attack_strength=2: belongs to attack=sign_flip",
        ),
        (
            {"site_test_fraction": 0.5},
            "site_test_fraction=0.5: belongs to site_test=held_back; set site_test=held_back",
        ),
        (
            {"site_test_fraction": 0.5, "site_test": "partitioned"},
            "site_test_fraction=0.5: belongs to site_test=held_back",
        ),
        (
            {"site_test_fraction": 1.0, "site_test": "held_back"},
            "site_test_fraction=1.0: expected a number above 0, below 1",
        ),
        (
            {"fine_tune_steps": 2},
            "fine_tune_steps=2: .* own test rows, and there are none; set site_test=held_back as well",
        ),
        (
            {"personal": "head", "scaffold": "I", "optimiser": "sgd", "weighting": "uniform"},
            "personal=head scaffold=I: .*",
        ),
        ({"personal": "head", "download": "int8"}, "personal=head download=int8: .*; set download=fp32"),
        ({"personal": "head", "ditto_lambda": 1}, "personal=head ditto_lambda=1.0: .*; set ditto_lambda=0.0"),
        (
            {"personal": "head", "attack": "gaussian", "attackers": 1},
            "personal=head attack=gaussian: it would reach .*; set attack=label_flip",
        ),
        ({"personal": "head", "baseline": "local_only"}, "personal=head: .* baseline=local_only replaces"),
        (
            {"personal": "head", "export": "best", "keep_best": "validation.loss"},
            "export=best: personal=head has no global",
        ),
        ({"ditto_lambda": -1}, "ditto_lambda=-1.*: expected a number, 0 or more"),
        (
            {"ditto_lambda": 1, "site_test": "held_back", "baseline": "centralised"},
            "ditto_lambda=1.0: .* baseline=centralised replaces",
        ),
        (
            {"trainable": "layer", "head_init": "independent"},
            "head_init=independent trainable=layer: .*; set trainable=all",
        ),
        (
            {"scaffold": "II", "optimiser": "sgd", "weighting": "uniform", "head_init": "independent"},
            "head_init=independent scaffold=II: the step from the server's head .*; set head_init=shared",
        ),
        (
            {"feddyn_alpha": 1, "weighting": "uniform", "head_init": "independent"},
            "head_init=independent feddyn_alpha=1",
        ),
        (
            {"attack": "label_flip", "attackers": 1, "scaffold": "I", "optimiser": "sgd", "weighting": "uniform"},
            "attack=label_flip scaffold=I: control variates would come from the true labels; set scaffold=II",
        ),
        (
            {"secure_aggregation": True, "upload": "int8"},
            "secure_aggregation=True upload=int8: a mask covers every value .*; set upload=fp32",
        ),
        ({"secure_aggregation": True, "exact_sum": False}, "masks cancel in whole numbers alone; set exact_sum=True"),
        ({"dp_epsilon": 2.0}, "dp_epsilon=2.0: there is no privacy without dp_clip; set it as well"),
        ({"dp_seed": 2}, "dp_seed=2: there is no privacy without dp_clip"),
        (DP | {"dp_epsilon": 2.0}, "dp_clip=1: set dp_noise_multiplier or dp_epsilon; both are set"),
        (DP | {"dp_noise_multiplier": None}, "dp_clip=1: set dp_noise_multiplier or dp_epsilon; neither is set"),
        (DP | {"dp_delta": None}, "dp_clip=1: set dp_delta as well, far below 1 / number of sites"),
        (
            DP | {"weighting": "examples"},
            "dp_clip=1 weighting=examples: .* may count as much .*; set weighting=uniform",
        ),
        (
            DP | {"sites_per_round": 1},
            "dp_clip=1 sampling=uniform: .*; set sampling=poisson, or let all sites take part",
        ),
        (DP | {"dp_count_noise": 1.0}, "dp_count_noise=1: belongs to adaptive clipping; set dp_clip_quantile as well"),
        (DP | {"exact_sum": False}, "dp_clip=1.0 exact_sum=False: .*; set exact_sum=True"),
        (DP | {"personal": "head"}, "dp_clip=1.0 personal=head: .*; set personal=None"),
        (DP | {"baseline": "centralised", "weighting": "uniform"}, "baseline=centralised replaces"),
        (DP | {"secure_aggregation": True}, "secure_aggregation=True dp_clip=1.0: .*; set dp_clip=None"),
        ({"secure_aggregation": True, "upload": "int8"}, "secure_aggregation=True upload=int8: .*; set upload=fp32"),
        (
            {"secure_threshold": 3},
            "secure_threshold=3: belongs to secure_aggregation=True; set it as well, or leave out",
        ),
        ({"secure_dropout": 0.5}, "secure_dropout=0.5: belongs to secure_aggregation=True"),
        (
            {"secure_aggregation": True, "secure_dropout": 1.0},
            "secure_dropout=1.0: expected a number from 0 to below 1",
        ),
        (DP | {"dp_epsilon": 51.0}, "dp_epsilon=51.0: expected a number above 0, up to 50"),
        (DP | {"feddyn_alpha": 0.1}, "feddyn_alpha=0.1"),
        (
            {"secure_aggregation": True, "weighting": "uniform", "feddyn_alpha": 0.1},
            "secure_aggregation=True feddyn_alpha",
        ),
        ({"ditto_lambda": 0.5}, "ditto_lambda=0.5: own models are evaluated on .*; set site_test=held_back as well"),
        (
            {"sampling": "poisson", "participation": 0.5, "baseline": "centralised"},
            "sampling=poisson: not for baseline=centralised; leave one of them out",
        ),
        ({"sampling": "poisson"}, "sampling='poisson': all sites take part in every round; set sites_per_round"),
        ({"attack_strength": 2}, "attack_strength=2: belongs to attack=sign_flip, gaussian or scale; leave it out"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_mapping(keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_local_steps": 3, "num_local_epochs": 1},
        {"server_nesterov": True, "server_momentum": 0.5},
        {"server_beta2": 0.9, "server_optimiser": "yogi"},
        {"server_tau": 0.1, "server_optimiser": "adagrad"},
        {"weighting": "sqrt", "sites_per_round": 1},
        {"local_epochs_range": [2, 2], "num_local_epochs": 1},
        {"scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "weight_decay": 0.1},
        {"feddyn_alpha": 0.1, "optimiser": "adamw", "weighting": "uniform", "max_grad_norm": 1.0},
        {"fednova": True, "optimiser": "sgd", "proximal_mu": 0.5, "weighting": "sqrt"},
        {"fairness_q": 1.0, "optimiser": "sgd", "weighting": "uniform", "sites_per_round": 1},
        DP,
        DP | {"sampling": "poisson", "participation": 0.5, "dp_clip_quantile": 0.5, "dp_count_noise": 2.0},
        DP | {"dp_noise_multiplier": None, "dp_epsilon": 3.0, "server_momentum": 0.9, "upload": "int8"},
        {"sampling": "poisson", "participation": 0.5, "weighting": "sqrt"},
        {"site_test": "held_back", "site_test_fraction": 0.5, "fine_tune_steps": 5, "baseline": "centralised"},
        {"personal": "head", "site_test": "partitioned", "fine_tune_steps": 5, "aggregation": "geometric_median"},
        {"ditto_lambda": 0.1, "scaffold": "I", "optimiser": "sgd", "weighting": "uniform", "site_test": "partitioned"},
        {"trainable": "head", "head_init": "independent", "personal": "bias"},
        {"upload": "topk", "topk_share": 1.0, "error_feedback": False, "download": "int8", "server_optimiser": "adam"},
        {
            "aggregation": "geometric_median",
            "weighting": "sqrt",
            "attack": "scale",
            "attackers": 1,
            "attack_strength": 3,
        },
        {"aggregation": "krum", "weighting": "uniform", "faulty_sites": 1, "krum_sites": 2, "proximal_mu": 1.0},
    ],
)
def test_keys_that_go_together_are_taken(keys: dict[str, Any]) -> None:
    assert Config.from_mapping(keys).to_mapping().items() >= keys.items()
