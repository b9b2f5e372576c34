#!/usr/bin/env python
"""A round with almost no training, against pfl-research, Flower's simulation, and the bare training steps.

    ./run-local.sh benchmarks/round_overhead.py

8 sites on the CPU train DistilBERT's shape (67 M random parameters). Each makes one SGD step per round on 4 texts of 16
tokens, with default dropout. There is no checkpoint, and no evaluation in the rounds that count. Ours is the real
command. The peers follow their documentation, in the fastest of the variants tried: pfl-research in one process with
all threads, or with a process per core; Flower with an actor per core that keeps its model, which beats one actor with
all threads. Peers and bare steps run with the defaults of torch and the system. A second run of the bare steps uses the
launcher's memory settings (launcher.LIBRARY_ENVIRONMENT), which any program could use.
"""

import argparse
import csv
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordPiece

from scaling_fl.runtime import launcher

NUM_SITES, BATCH_SIZE, LENGTH, LEARNING_RATE = 8, 4, 16, 5e-5
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
FLOWER = """
import functools, json, sys, time
import numpy as np, torch, transformers
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
client, server, ends = ClientApp(), ServerApp(), []
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
class Clocked(FedAvg):
    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        assert replies and not any(reply.has_error() for reply in replies), replies
        aggregated = super().aggregate_train(server_round, replies)
        ends.append(time.time())
        return aggregated
@server.main()
def serve(grid, context):
    folder, rounds, rate = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    Clocked(fraction_evaluate=0.0).start(
        grid, ArrayRecord(load(f"{folder}/model").state_dict()), rounds,
        train_config=ConfigRecord({"folder": folder, "rate": rate}))
def main():
    resources = {"num_cpus": 1, "num_gpus": 0.0}
    run_simulation(server, client, int(sys.argv[4]), backend_config={"client_resources": resources})
    print(json.dumps(ends))
"""


def make(folder: Path) -> None:
    """Write a model, its texts, and the texts as token ids (site, row, token) for the peers, which read no text."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    words = [f"w{number}" for number in range(1000)]
    vocabulary |= {word: len(vocabulary) + number for number, word in enumerate(words)}
    backend = Tokenizer(WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig()).save_pretrained(folder / "model")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=LENGTH - 2)) for _ in range(NUM_SITES * BATCH_SIZE)]
    ids = np.array(tokenizer(texts)["input_ids"]).reshape(NUM_SITES, BATCH_SIZE, LENGTH)
    np.save(folder / "batches.npy", ids)
    for name, rows in (("train", texts), ("test", texts[:2])):
        with open(folder / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *((text, row % 2) for row, text in enumerate(rows))])
    (folder / "flower_rounds.py").write_text(
        FLOWER
    )  # a module, since actors would unpickle code given by `-c` at each call


def scaling_fl(folder: Path, num_rounds: int, exact_sum: bool = True) -> list[float]:
    """End times of the real command's rounds, but for the last, which is evaluated."""
    config = {
        "task_name": "csv", "train_path": folder / "train.csv", "test_path": folder / "test.csv",
        "text_column": "text", "label_column": "label", "model": folder / "model", "max_seq_len": LENGTH,
        "site_ids": str([-1] * NUM_SITES).replace(" ", ""), "batch_size": BATCH_SIZE, "optimiser": "sgd",
        "learning_rate": LEARNING_RATE, "num_rounds": num_rounds + 1, "eval_every": num_rounds + 1,
        "exact_sum": exact_sum, "checkpoints_dir": None,
    }  # fmt: skip
    environ = dict.fromkeys(("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST"), "")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, measure.ROOT / "scripts" / "train_federated.py", "with"]
        command += [f"{key}={value}" for key, value in config.items()]
        environ["XDG_CACHE_HOME"] = place
        done = subprocess.run(command, cwd=place, env=os.environ | environ, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"the command failed:\n{done.stderr[-4000:]}")
        (log,) = Path(place).glob("runs/_events/*.jsonl")
        events = [json.loads(line) for line in log.read_text().splitlines()]
    return [event["time"] for event in events if event["event"] == "round"][1:-1]  # the first is round 0


def pfl_research(python: str, folder: Path, num_rounds: int, processes: int, cohort: int) -> list[float]:
    """End times of pfl-research's rounds on the model and the batches (user, row, token) in `folder`."""
    (folder / "pfl_rounds.py").write_text(PFL)
    torchrun = "import sys; from torch.distributed.run import main; main(sys.argv[1:])"
    arguments = ["--standalone", "--nproc-per-node", processes, folder / "pfl_rounds.py"]
    ends: list[float] = measure.script(
        python, torchrun, *arguments, folder, num_rounds, LEARNING_RATE, measure.CORES, cohort
    )
    return ends


def timed(run: Callable[[], list[float]]) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first round, and of each further round."""
    start = time.time()
    ends = run()
    return {"first": round(ends[0] - start, 1), "rounds": [round(b - a, 3) for a, b in itertools.pairwise(ends)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    pfl = measure.peer("pfl", *PFL_REQUIREMENTS)
    flower = measure.peer("flower", "flwr[simulation]==1.41.0", "transformers==5.23.0")
    num_rounds = options.rounds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        measure.wait_until_quiet()

        def run_flower() -> list[float]:
            code = "import flower_rounds; flower_rounds.main()"
            ends: list[float] = measure.script(
                flower, code, folder, num_rounds, LEARNING_RATE, NUM_SITES,
                PYTHONPATH=str(folder), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0",
            )  # fmt: skip
            return ends

        def bare(processes: int, **settings: str) -> list[float]:
            arguments = (folder, num_rounds, processes, LEARNING_RATE, measure.CORES)
            ends: list[float] = measure.script(sys.executable, BARE, *arguments, **settings)
            return ends

        runs: dict[str, Callable[[], list[float]]] = {
            "scaling_fl": lambda: scaling_fl(folder, num_rounds),
            "scaling_fl, floats": lambda: scaling_fl(folder, num_rounds, exact_sum=False),
            "bare steps, a process per site": lambda: bare(NUM_SITES),
            "bare steps, our settings": lambda: bare(NUM_SITES, **launcher.LIBRARY_ENVIRONMENT),
            "bare steps, one process": lambda: bare(1),
            "pfl-research, one process": lambda: pfl_research(pfl, folder, num_rounds, 1, NUM_SITES),
            "pfl-research, a process per core": lambda: pfl_research(pfl, folder, num_rounds, measure.CORES, NUM_SITES),
            "Flower": run_flower,
        }
        results = measure.in_turn({name: (lambda run=run: timed(run)) for name, run in runs.items()}, options.repeats)

    rounds = {name: statistics.median(s for row in rows for s in row["rounds"]) for name, rows in results.items()}
    first = {name: statistics.median(row["first"] for row in rows) for name, rows in results.items()}
    mine = rounds["scaling_fl"]

    def row(claim: str, name: str, bar: str) -> tuple[str, str, str, str, str]:
        return claim, f"{mine:.2f} s", f"{rounds[name]:.2f} s", f"{rounds[name] / mine:.2f}", bar

    def inverse(claim: str, ours: float, theirs: float, bar: str) -> tuple[str, str, str, str, str]:
        return claim, f"{ours:.2f} s", f"{theirs:.2f} s", f"{ours / theirs:.2f}", bar

    fastest = min((name for name in rounds if name.startswith("pfl")), key=rounds.__getitem__)
    measure.table(
        [
            row(f"a round, against {fastest}", fastest, "≥ 1.6"),
            row("… against Flower", "Flower", "≥ 10"),
            inverse(
                "… against the bare steps, one process per site",
                mine,
                rounds["bare steps, a process per site"],
                "≤ 1.25",
            ),
            inverse("… against the same with our memory settings", mine, rounds["bare steps, our settings"], "≤ 1.25"),
            inverse(
                "… against the same, summing floats",
                rounds["scaling_fl, floats"],
                rounds["bare steps, our settings"],
                "",
            ),
            inverse("… against the bare steps, one process", mine, rounds["bare steps, one process"], ""),
            inverse("start to first round, against Flower", first["scaling_fl"], first["Flower"], "≤ 0.25"),
            inverse(f"… against {fastest}", first["scaling_fl"], first[fastest], ""),
        ]
    )


if __name__ == "__main__":
    main()
