"""Run by pfl-research's own Python: its algorithms train a given model on given shards, and its accountant bounds ε.

    python pfl_rounds.py FOLDER

FOLDER holds `model/` and `given.npz`: `ids-K`, `mask-K` and `labels-K` of each site K, and `mechanisms` (n, 4): sampling
probability, noise multiplier, rounds, δ. `found.npz` is written there: by method and parameter, the values after training;
and `epsilon` (n, 3): lower bound, estimate and upper bound.
"""

import copy
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm import scaffold
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.algorithm.fedprox import FedProx, FedProxParams
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.data.user_state import InMemoryUserStateStorage
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.bridge import FrameworkBridgeFactory
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

ROUNDS, EPOCHS, SITES, RATE = 4, 3, 3, 0.02
folder = Path(sys.argv[1])
given = np.load(folder / "given.npz")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")

    def loss(self, ids, mask, labels):
        return self.body(input_ids=ids, attention_mask=mask, labels=labels).loss

    def metrics(self, ids, mask, labels):
        return {"loss": Weighted(0.0, len(labels))}


class Copies(InMemoryUserStateStorage):
    """The original keeps references: with option I all users then share one buffer."""

    def save_state(self, state, user_id, key=None):
        super().save_state(copy.deepcopy(state), user_id, key)


def shard(site):
    return Dataset([torch.from_numpy(given[f"{kind}-{site}"]) for kind in ("ids", "mask", "labels")], user_id=site)


def train(algorithm, kind, momentum=0.0, weighted=True, **keys):
    data = FederatedDataset(shard, MinimizeReuseUserSampler(list(range(SITES))))
    module = Model()
    central = torch.optim.SGD(module.parameters(), lr=1.0, momentum=momentum)
    algorithm.run(
        kind(ROUNDS, evaluation_frequency=ROUNDS + 1, train_cohort_size=SITES, val_cohort_size=None, **keys),
        SimulatedBackend(data, data, [WeightByDatapoints()] * weighted),
        PyTorchModel(module, torch.optim.SGD, central),
        NNTrainHyperParams(local_batch_size=None, local_num_epochs=EPOCHS, local_learning_rate=RATE),
        NNEvalHyperParams(local_batch_size=None),
        [],
        send_metrics_to_platform=False,
    )
    return {name.removeprefix("body."): value.detach().numpy() for name, value in module.named_parameters()}


def control_variates(option):
    return train(
        scaffold.SCAFFOLD(), scaffold.SCAFFOLDParams, weighted=False, population=SITES,
        use_gradient_as_control_variate=option == "I", user_state_storage=Copies(),
    )  # fmt: skip


found = {
    "FedAvg": train(FederatedAveraging(), NNAlgorithmParams),
    "FedAvgM": train(FederatedAveraging(), NNAlgorithmParams, momentum=0.5),
    "FedProx": train(FedProx(), FedProxParams, mu=8.0),
    "SCAFFOLD I": control_variates("I"),
    "SCAFFOLD II": control_variates("II"),
}
bridge = FrameworkBridgeFactory.scaffold_bridge()
original = bridge.do_control_variate_sgd


def exchanged(model, user_dataset, train_params, local_c, server_c):
    original(model, user_dataset, train_params, local_c=server_c, server_c=local_c)


bridge.do_control_variate_sgd = staticmethod(exchanged)
found["SCAFFOLD I, sign exchanged"] = control_variates("I")
found["SCAFFOLD II, sign exchanged"] = control_variates("II")
bounds = [
    PRVAccountant(
        prvs=PoissonSubsampledGaussianMechanism(q, z), max_self_compositions=int(rounds), eps_error=0.01,
        delta_error=delta / 1000,
    ).compute_epsilon(delta, int(rounds))
    for q, z, rounds, delta in given["mechanisms"]
]  # fmt: skip
values = {f"{method}/{name}": value for method, params in found.items() for name, value in params.items()}
np.savez(folder / "found.npz", epsilon=np.array(bounds), **values)
