"""Run by FL4Health's own Python: its clients and strategies train a given model on given shards, without a server.

    python fl4health_rounds.py FOLDER

FOLDER holds `model/` and `given.npz`: `ids-K`, `mask-K` and `labels-K` of each site K. `found.npz` is written there: the
global model's values by METHOD/PARAMETER, and those of each site's own model by METHOD/SITE/PARAMETER.
"""

import copy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers
from fl4health.clients.basic_client import BasicClient
from fl4health.clients.ditto_client import DittoClient
from fl4health.clients.fed_prox_client import FedProxClient
from fl4health.clients.fedper_client import FedPerClient
from fl4health.clients.scaffold_client import ScaffoldClient
from fl4health.model_bases.sequential_split_models import SequentiallySplitExchangeBaseModel
from fl4health.strategies.basic_fedavg import BasicFedAvg
from fl4health.strategies.fedavg_with_adaptive_constraint import FedAvgWithAdaptiveConstraint
from fl4health.strategies.scaffold import Scaffold
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays

ROUNDS, EPOCHS, SITES, RATE = 4, 3, 3, 0.02
folder = Path(sys.argv[1])
given = np.load(folder / "given.npz")
whole = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")


class Base(torch.nn.Module):
    """All but the head. Its input has ids and mask side by side."""

    def __init__(self):
        super().__init__()
        self.bert = copy.deepcopy(whole.bert)

    def forward(self, packed):
        ids, mask = packed.chunk(2, dim=1)
        return self.bert(input_ids=ids, attention_mask=mask)[1]


class Whole(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.base_module, self.head_module = Base(), copy.deepcopy(whole.classifier)

    def forward(self, packed):
        return self.head_module(self.base_module(packed))


class Ours:
    """What a user of FL4Health writes."""

    site, split = 0, False

    def get_model(self, config):
        return SequentiallySplitExchangeBaseModel(Base(), copy.deepcopy(whole.classifier)) if self.split else Whole()

    def get_optimizer(self, config):
        if not isinstance(self, DittoClient):
            return torch.optim.SGD(self.model.parameters(), lr=RATE)
        pair = {"local": self.model, "global": self.global_model}
        return {name: torch.optim.SGD(module.parameters(), lr=RATE) for name, module in pair.items()}

    def get_criterion(self, config):
        return torch.nn.CrossEntropyLoss()

    def get_data_loaders(self, config):
        ids, mask, labels = (torch.from_numpy(given[f"{kind}-{self.site}"]) for kind in ("ids", "mask", "labels"))
        data = torch.utils.data.TensorDataset(torch.cat([ids, mask], dim=1), labels)
        loader = torch.utils.data.DataLoader(data, batch_size=len(data))
        return loader, loader


def named(module):
    plain = {}
    for name, value in module.named_parameters():
        plain[name.replace("base_module.", "").replace("head_module", "classifier")] = value.detach().numpy().copy()
    return plain


def train(kind, strategy, start):
    """Four rounds, as Flower's server runs them; returns the clients and the global values."""
    clients = []
    for site in range(SITES):
        client = type("Client", (Ours, kind), {"site": site, "split": kind is FedPerClient})(
            Path(), [], torch.device("cpu"), client_name=str(site)
        )
        clients.append(client)
    values = start
    for round_ in range(1, ROUNDS + 1):
        config = {"current_server_round": round_, "local_epochs": EPOCHS, "batch_size": 64}
        results = []
        for site, client in enumerate(clients):
            sent, count, metrics = client.fit([value.copy() for value in values], config)
            done = FitRes(Status(Code.OK, ""), ndarrays_to_parameters(sent), count, metrics)
            results.append((SimpleNamespace(cid=str(site)), done))
        combined, _ = strategy.aggregate_fit(round_, results, [])
        values = parameters_to_ndarrays(combined)
    return clients, values


module = Ours().get_model({})
state = [value.numpy().copy() for value in module.state_dict().values()]
keys = [name.replace("base_module.", "").replace("head_module", "classifier") for name in module.state_dict()]
FULL = {"min_fit_clients": SITES, "min_evaluate_clients": SITES, "min_available_clients": SITES}
found = {}

_, values = train(BasicClient, BasicFedAvg(**FULL), state)
found |= {f"FedAvg/{name}": value for name, value in zip(keys, values, strict=True)}

for method, kind, weight in (("FedProx", FedProxClient, 8.0), ("Ditto", DittoClient, 2.0)):
    packed = ndarrays_to_parameters(state)
    strategy = FedAvgWithAdaptiveConstraint(
        initial_parameters=packed, initial_loss_weight=weight, adapt_loss_weight=False, **FULL
    )
    clients, values = train(kind, strategy, parameters_to_ndarrays(packed))
    found |= {f"{method}/{name}": value for name, value in zip(keys, values[:-1], strict=True)}
    if method == "Ditto":
        for site, client in enumerate(clients):
            found |= {f"Ditto/{site}/{name}": value for name, value in named(client.model).items()}

strategy = Scaffold(initial_parameters=ndarrays_to_parameters(state), model=module, min_available_clients=SITES)
zeros = [np.zeros(value.shape, np.float32) for value in module.parameters()]
_, values = train(ScaffoldClient, strategy, [*state, *zeros])
found |= {f"SCAFFOLD II/{name}": value for name, value in zip(keys, values, strict=False)}

# In the first round FL4Health's clients take all values from the server, in later ones those that are exchanged.
clients, values = train(FedPerClient, BasicFedAvg(**FULL), state)
exchanged = clients[0].parameter_exchanger.layers_to_transfer
names = [name.replace("base_module.", "") for name in exchanged]
found |= {f"FedPer/{name}": value for name, value in zip(names, values, strict=True)}
for site, client in enumerate(clients):
    found |= {f"FedPer/{site}/{name}": value for name, value in named(client.model).items()}
np.savez(folder / "found.npz", **found)
