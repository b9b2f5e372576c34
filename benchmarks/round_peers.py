"""The peers of round_overhead.py, in processes of their own: bare training steps, pfl-research, Flower's simulation."""

import sys
from pathlib import Path

import measure

LEARNING_RATE = 5e-5
# Each prints the end times of its rounds as JSON.
BARE = """
import functools, json, multiprocessing, sys, time
import numpy as np, torch, transformers
folder, rounds, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def work(rank, barrier, threads, send):
    torch.set_num_threads(threads)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(f"{folder}/model").train()
    optimiser = torch.optim.SGD(model.parameters(), float(sys.argv[4]), fused=True)
    batches = torch.from_numpy(np.load(f"{folder}/batches.npy"))
    mask, labels, ends = torch.ones_like(batches[0]), torch.arange(len(batches[0])) % 2, []
    barrier.wait()
    for _ in range(rounds):
        for ids in batches[rank::processes]:
            model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        barrier.wait()
        ends.append(time.time())
    send(ends)
context = multiprocessing.get_context("fork")
barrier, (ours, theirs) = context.Barrier(processes), context.Pipe(duplex=False)
threads = max(1, int(sys.argv[5]) // processes)
children = [context.Process(target=work, args=(rank, barrier, threads, theirs.send if rank == 0 else len), daemon=True)
            for rank in range(processes)]
for child in children:
    child.start()
assert ours.poll(300), "a process failed"
print(json.dumps(ours.recv()))
for child in children:
    child.join()
"""
PFL_REQUIREMENTS = ("pfl[pytorch]==0.6.0", "transformers==5.23.0")
PFL = """
import functools, json, sys, time
import numpy as np, torch, transformers
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import MinimizeReuseUserSampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
folder, rounds, rate, cores = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
cohort = int(sys.argv[5])
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = transformers.AutoModelForSequenceClassification.from_pretrained(f"{folder}/model")
    def loss(self, ids, mask, labels):
        self.train()
        return self.body(input_ids=ids, attention_mask=mask, labels=labels).loss
    def metrics(self, ids, mask, labels):  # called in the first round only, whatever the frequency
        return {"loss": Weighted(0.0, len(labels))}
class Clock(TrainingProcessCallback):
    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        ends.append(time.time())
        return False, Metrics()
ends = []
np.random.seed(0)  # the processes must draw the same users
torch.set_num_threads(max(1, cores // pytorch_ops.distributed.world_size))
module, sgd = Model(), functools.partial(torch.optim.SGD, fused=True)
batches = torch.from_numpy(np.load(f"{folder}/batches.npy"))
mask, labels = torch.ones_like(batches[0]), torch.arange(len(batches[0])) % 2
users = range(len(batches))
data = FederatedDataset(
    lambda user: Dataset([batches[user], mask, labels], user_id=user), MinimizeReuseUserSampler(list(users)))
FederatedAveraging().run(
    NNAlgorithmParams(rounds, evaluation_frequency=rounds + 1, train_cohort_size=cohort, val_cohort_size=None),
    SimulatedBackend(data, data, [WeightByDatapoints()]),
    PyTorchModel(module, sgd, sgd(module.parameters(), 1.0)),
    NNTrainHyperParams(local_batch_size=len(labels), local_num_epochs=1, local_learning_rate=rate),
    NNEvalHyperParams(local_batch_size=None), [Clock()], send_metrics_to_platform=False)
if pytorch_ops.distributed.global_rank == 0:
    print(json.dumps(ends))
"""
FLOWER_REQUIREMENTS = ("flwr[simulation]==1.41.0", "transformers==5.23.0")
# The arguments of a script that uses it end with the number of sites.
FLOWER_SIMULATION = """
import functools, json, os, sys, time
import numpy as np, torch, transformers
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
client, server, ends = ClientApp(), ServerApp(), []
class Clocked(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert replies and not any(reply.has_error() for reply in replies), replies
        aggregated = super().aggregate_train(server_round, replies)
        ends.append(time.time())
        return aggregated
def main():
    resources = {"num_cpus": float(os.environ.get("CORES_PER_ACTOR", 1)), "num_gpus": 0.0}
    run_simulation(server, client, int(sys.argv[-1]), backend_config={"client_resources": resources})
    print(json.dumps(ends))
"""
FLOWER = (
    FLOWER_SIMULATION
    + """
load = transformers.AutoModelForSequenceClassification.from_pretrained
@functools.cache
def resident(folder):
    torch.set_num_threads(1)
    return load(f"{folder}/model").train(), torch.from_numpy(np.load(f"{folder}/batches.npy"))
@client.train()
def train(message, context):
    config = message.content["config"]
    model, batches = resident(config["folder"])
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    ids = batches[context.node_config["partition-id"]]
    optimiser = torch.optim.SGD(model.parameters(), config["rate"], fused=True)
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(len(ids)) % 2).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    metrics = MetricRecord({"num-examples": len(ids)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
@server.main()
def serve(grid, context):
    folder, rounds, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    Clocked(fraction_evaluate=0.0).start(
        grid, ArrayRecord(load(f"{folder}/model").state_dict()), rounds,
        train_config=ConfigRecord({"folder": folder, "rate": rate}))
"""
)


def bare(folder: Path, num_rounds: int, processes: int, **settings: str) -> list[float]:
    """End times of rounds of the bare steps on the model and the batches (site, row, token) in `folder`."""
    arguments = (folder, num_rounds, processes, LEARNING_RATE, measure.CORES)
    ends: list[float] = measure.script(sys.executable, BARE, *arguments, **settings)
    return ends


def pfl_research(python: str, folder: Path, num_rounds: int, processes: int, cohort: int) -> list[float]:
    """End times of pfl-research's rounds on the model and the batches (user, row, token) in `folder`."""
    (folder / "pfl_rounds.py").write_text(PFL)
    torchrun = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    arguments = ["--standalone", "--nproc-per-node", processes, folder / "pfl_rounds.py"]
    ends: list[float] = measure.script(
        python, torchrun, *arguments, folder, num_rounds, LEARNING_RATE, measure.CORES, cohort
    )
    return ends


def flower(python: str, folder: Path, num_rounds: int, num_sites: int) -> list[float]:
    """End times of Flower's rounds on the model and the batches (site, row, token) in `folder`."""
    # A module, since actors would unpickle code given by `-c` at each call.
    (folder / "flower_rounds.py").write_text(FLOWER)
    code = "import flower_rounds; flower_rounds.main()"
    ends: list[float] = measure.script(
        python, code, folder, num_rounds, LEARNING_RATE, num_sites,
        PYTHONPATH=str(folder), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0",
    )  # fmt: skip
    return ends
