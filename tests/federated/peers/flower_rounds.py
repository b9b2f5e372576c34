"""Run by Flower's own Python: its strategies aggregate given deltas, without network.

    python flower_rounds.py INPUT.npz OUTPUT.npz

INPUT holds `start` (size,), `deltas` (rounds, sites, size), `sizes` (sites,) and `loss` (rounds,) of the server's model.
OUTPUT holds, by method, the server's parameters after each round (rounds, size).
"""

import sys

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import strategy
from flwr.server.strategy import dp_adaptive_clipping, dp_fixed_clipping

given = np.load(sys.argv[1])
rounds, sites, size = given["deltas"].shape
initial = ndarrays_to_parameters([given["start"]])
adaptive = {"initial_parameters": initial, "eta": 0.1, "beta_1": 0.9, "tau": 0.01}
METHODS = {
    "FedAvg": lambda: strategy.FedAvg(inplace=False),
    "FedAvgM": lambda: strategy.FedAvgM(server_learning_rate=0.5, server_momentum=0.9, initial_parameters=initial),
    "FedAdam": lambda: strategy.FedAdam(beta_2=0.99, **adaptive),
    "FedYogi": lambda: strategy.FedYogi(beta_2=0.99, **adaptive),
    "FedAdagrad": lambda: strategy.FedAdagrad(initial_parameters=initial, eta=0.1, tau=0.01),
    "median": lambda: strategy.FedMedian(inplace=False),
    "trimmed mean": lambda: strategy.FedTrimmedAvg(beta=0.25),
    "Krum": lambda: strategy.Krum(num_malicious_clients=2),
    "Multi-Krum": lambda: strategy.Krum(num_malicious_clients=2, num_clients_to_keep=4),
    "q-FFL": lambda: strategy.QFedAvg(q_param=2.0, qffl_learning_rate=100.0, evaluate_fn=evaluate),
    "clipping": lambda: dp_fixed_clipping.DifferentialPrivacyServerSideFixedClipping(
        strategy.FedAvg(inplace=False), 0.0, 2.0, sites
    ),
    "adaptive clipping": lambda: dp_adaptive_clipping.DifferentialPrivacyServerSideAdaptiveClipping(
        strategy.FedAvg(inplace=False), 0.0, sites, initial_clipping_norm=2.0, clipped_count_stddev=0.0
    ),
}
UNIFORM = ("Multi-Krum", "clipping", "adaptive clipping")  # its other robust strategies have no weights


def evaluate(server_round, parameters, config):
    return float(given["loss"][server_round - 1]), {}


found = {}
for name, make in METHODS.items():
    method, params, after = make(), given["start"], []
    for round_ in range(1, rounds + 1):
        if name == "q-FFL":
            method.pre_weights = [params]
        method.current_round_params = [params]  # of the strategies that clip
        results = [
            (None, FitRes(Status(Code.OK, ""), ndarrays_to_parameters([params - delta]), int(count), {}))
            for delta, count in zip(given["deltas"][round_ - 1], given["sizes"], strict=True)
        ]
        for _, result in results if name in UNIFORM else ():
            result.num_examples = 1
        (params,) = parameters_to_ndarrays(method.aggregate_fit(round_, results, [])[0])
        after.append(params)
    found[name] = np.array(after)
np.savez(sys.argv[2], **found)
