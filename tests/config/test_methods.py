"""Keys of methods that contradict each other, or that nothing would use."""

from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


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
    ],
)
def test_keys_that_go_together_are_taken(keys: dict[str, Any]) -> None:
    assert Config.from_mapping(keys).to_mapping().items() >= keys.items()
