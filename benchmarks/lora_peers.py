"""The peers of lora.py, in processes of their own: bare LoRA steps by peft, and Flower's simulation with FlowerTune's client."""

import sys
from pathlib import Path
from typing import Any

import measure
import round_peers

LEARNING_RATE, RANK = 5e-4, 8
_MODEL = """
import os, torch, transformers
from peft import LoraConfig, get_peft_model
def adapted(place):
    base = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    base.config.use_cache = False
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora).train()
def optimiser_of(model, rate):
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate, fused=True)
def step(model, optimiser, ids):
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
"""
# Prints the end times of rounds, and the bytes that the steps add to a loaded model, as JSON.
BARE = (
    _MODEL
    + """
import json, multiprocessing, sys, time
import numpy as np
place, folder, rounds, processes, cores, rate = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]), float(sys.argv[6])
def status(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))
def work(rank, barrier, send):
    torch.set_num_threads(max(1, cores // processes))
    model = adapted(place)
    batches, ends = torch.from_numpy(np.load(f"{folder}/batches.npy")), []
    with torch.no_grad():
        model(batches[0, :1, :1])  # the weights are mapped, and count from their first use
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    barrier.wait()
    for _ in range(rounds):
        for ids in batches[rank::processes]:
            step(model, optimiser_of(model, rate), ids)
        barrier.wait()
        ends.append(time.time())
    send({"ends": ends, "grown": status("VmHWM") - before})
context = multiprocessing.get_context("fork")
barrier, (ours, theirs) = context.Barrier(processes), context.Pipe(duplex=False)
children = [context.Process(target=work, args=(rank, barrier, theirs.send if rank == 0 else len), daemon=True)
            for rank in range(processes)]
for child in children:
    child.start()
assert ours.poll(1200), "a process failed"
print(json.dumps(ours.recv()))
for child in children:
    child.join()
"""
)
FLOWER_REQUIREMENTS = ("flwr[simulation]==1.41.0", "transformers==5.23.0", "peft==0.21.2")
FLOWER = (
    _MODEL
    + round_peers.FLOWER_SIMULATION
    + """
from peft import get_peft_model_state_dict, set_peft_model_state_dict
def resident(place, folder):
    torch.set_num_threads(1)
    return adapted(place), torch.from_numpy(np.load(f"{folder}/batches.npy"))
kept = functools.cache(resident)
@client.train()
def train(message, context):
    config = message.content["config"]
    model, batches = (kept if config["keep"] else resident)(config["place"], config["folder"])
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    ids = batches[context.node_config["partition-id"]]
    step(model, optimiser_of(model, config["rate"]), ids)
    metrics = MetricRecord({"num-examples": len(ids)})
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
@server.main()
def serve(grid, context):
    place, folder, rounds, rate, keep = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5] == "True"
    Clocked(fraction_evaluate=0.0).start(
        grid, ArrayRecord(get_peft_model_state_dict(adapted(place))), rounds,
        train_config=ConfigRecord({"place": place, "folder": folder, "rate": rate, "keep": keep}))
"""
)


def bare(model: Path, folder: Path, num_rounds: int, processes: int, **settings: str) -> dict[str, Any]:
    """End times of rounds, and bytes that steps take, on the batches (site, row, token) in `folder`."""
    arguments = (model, folder, num_rounds, processes, measure.CORES, LEARNING_RATE)
    found: dict[str, Any] = measure.script(sys.executable, BARE, *arguments, **settings)
    return found


def flower(
    python: str, model: Path, folder: Path, num_rounds: int, num_sites: int, keep: bool, actors: int = measure.CORES
) -> list[float]:
    """End times of Flower's rounds on the batches (site, row, token) in `folder`.

    FlowerTune's client loads the model at each call; with `keep`, an actor keeps it.
    """
    (folder / "flower_lora.py").write_text(
        FLOWER
    )  # a module, since actors would unpickle code given by `-c` at each call
    ends: list[float] = measure.script(
        python, "import flower_lora; flower_lora.main()", model, folder, num_rounds, LEARNING_RATE, keep, num_sites,
        PYTHONPATH=str(folder), FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0",
        CORES_PER_ACTOR=str(measure.CORES / actors if actors > measure.CORES else measure.CORES // actors),
    )  # fmt: skip
    return ends
