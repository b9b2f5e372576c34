"""Keys of methods that contradict each other, or that nothing would use."""

from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"num_local_steps": 3, "num_local_epochs": 2}, "num_local_steps=3 num_local_epochs=2: both set the length"),
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
    ],
)
def test_keys_that_go_together_are_taken(keys: dict[str, Any]) -> None:
    assert Config.from_mapping(keys).to_mapping().items() >= keys.items()
