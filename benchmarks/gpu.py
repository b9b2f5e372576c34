#!/usr/bin/env python
"""One GPU: local training against the Hugging Face Trainer, and 1 to 16 sites that share the GPU. Needs no network.

    ./run-local.sh benchmarks/gpu.py

The models are BERT-base and DistilBERT with random weights, trained with AdamW on batches of 32 texts of 8 to 128 tokens,
in bf16 if the GPU supports it. Model FLOPs are 6 × (parameters outside the embeddings) × (tokens without padding),
compared with the rate of large matrix products in the same precision. Aggregation needs N reads and 1 write; a copy is 1
read and 1 write.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site import Site
from scaling_fl.models import loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.runtime import launcher

DEVICE = torch.device("cuda:0")
SHAPES = {"BERT-base": transformers.BertConfig, "DistilBERT": transformers.DistilBertConfig}
VOCABULARY = 30522
BATCH, WARM_UP = 32, 4  # WARM_UP batches don't count
OURS = "import sys, json, gpu; print(json.dumps(gpu.ours(sys.argv[1], int(sys.argv[2]), sys.argv[3])))"
LIMITS = (
    "import sys, json, gpu; print(json.dumps(gpu.limits(sys.argv[1])))"  # in its own process, which frees the memory
)
TRAINER = (
    "import sys, json, gpu; print(json.dumps(gpu.trainer(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4])))"
)


def module(shape: str) -> Any:
    torch.manual_seed(1)
    return transformers.AutoModelForSequenceClassification.from_config(SHAPES[shape](num_labels=4))


def examples(count: int) -> tuple[list[list[int]], np.ndarray]:
    """Random token ids and labels; lengths are distributed like those of news texts."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.9, 0.4, count).astype(int), 8, 128)
    return [rng.integers(1000, VOCABULARY, length).tolist() for length in lengths], rng.integers(0, 4, count)


class Tokenized:
    """A tokenizer whose input is token ids already."""

    def __len__(self) -> int:
        return VOCABULARY

    def __call__(self, texts: Sequence[list[int]], *_: Any, **__: Any) -> dict[str, Any]:
        return {"input_ids": list(texts)}


def resident(folder: Path, shape: str, count: int, precision: str, flat: torch.Tensor | None = None) -> Resident:
    if not (folder / "train").exists():
        token_store.write(folder / "train", Tokenized(), *examples(count), 128)
    store = token_store.TokenStore(folder / "train", 0)
    loading.disable_mask_inspection()
    built = module(shape).to(DEVICE)
    flat = torch.zeros(Layout(built).size, device=DEVICE) if flat is None else flat
    return Resident(Config(batch_size=BATCH, precision=precision), FlatModel(built, flat), store, store, DEVICE)


def flops(built: Any, num_tokens: int) -> float:
    return 6.0 * num_tokens * sum(p.numel() for name, p in built.named_parameters() if "embeddings" not in name)


def ours(shape: str, batches: int, precision: str) -> tuple[float, float]:
    """Examples and model FLOPs per second of one site."""
    with tempfile.TemporaryDirectory() as folder:
        home = resident(Path(folder), shape, batches * BATCH, precision)
        params, everything = home.model.flat.clone(), np.arange(batches * BATCH)
        Site(0, everything[: WARM_UP * BATCH], home).train(params, 1)  # warm up
        torch.cuda.synchronize()
        seconds = measure.timed(
            lambda: Site(0, everything, home).train(params, 2)
        )  # training ends with a read of the loss, which synchronises
        return len(everything) / seconds, flops(home.model.module, int(home.train.lengths.sum())) / seconds


def trainer(shape: str, batches: int, precision: str, sampling: str) -> tuple[float, float]:
    """Examples and model FLOPs per second of the Hugging Face Trainer."""
    ids, labels = examples(batches * BATCH)
    rows = [
        {"input_ids": i, "attention_mask": [1] * len(i), "labels": int(n)} for i, n in zip(ids, labels, strict=True)
    ]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(times) < WARM_UP:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch]),
            "attention_mask": torch.tensor([row["attention_mask"] + [0] * (longest - len(row["attention_mask"])) for row in batch]),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=5e-5, max_grad_norm=0.0,
            lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            train_sampling_strategy=sampling, bf16=precision == "bf16", dataloader_num_workers=4,
        )  # fmt: skip
        built = module(shape)
        transformers.Trainer(
            built, arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]
        ).train()  # training ends with a read of the loss, which synchronises
        seconds = time.perf_counter() - times[WARM_UP - 1]
    part = (len(times) - WARM_UP) / len(times)
    return part * len(rows) / seconds, part * flops(built, sum(map(len, ids))) / seconds


def work(
    send: Any, rank: int, num_sites: int, memory: SharedMemory, folder: str, precision: str, count: int, free: int
) -> None:
    """One of several sites on the GPU: time three rounds and check the mean. `free`: free bytes before the start."""
    torch.set_num_threads(max(1, measure.CORES // num_sites))
    torch.cuda.set_device(DEVICE)
    size = Layout(module("DistilBERT")).size
    collectives = Collectives(rank, [str(DEVICE)] * num_sites, size, memory, f"file://{folder}/rendezvous")
    shared = collectives.worker_row.is_cuda
    home = resident(
        Path(folder) / str(rank), "DistilBERT", count, precision, collectives.worker_row if shared else None
    )
    if rank == 0:
        collectives.state[0].copy_(home.model.flat)
    torch.cuda.empty_cache()
    collectives.barrier()
    state = ServerState(collectives.state[0], home.model.layout.trained, 0)
    shard = np.arange(rank, count, num_sites)
    some = slice(size // 2, size // 2 + 100_000)  # part of the encoder's matrices
    result: dict[str, Any] = {"through": collectives.transport_note or "CUDA IPC", "train": [], "aggregate": []}
    for round_ in range(1, 5):
        collectives.barrier()
        start = time.perf_counter()
        delta, _ = Site(rank, shard, home).train(state.params, round_)
        collectives.barrier()
        trained = time.perf_counter()
        before, sample = (t[some].to("cpu", copy=True) for t in (state.params, delta))
        assert sample.any(), "no site moved these parameters"
        samples = collectives.all_gather((len(shard), sample.numpy()))
        collectives.barrier()
        begun = time.perf_counter()
        total = collectives.weighted_sum()
        total.add(rank, delta, len(shard) / count)
        for part, piece in collectives.weighted_mean(total):
            SGD().step(state, piece, part)
        ended = time.perf_counter()
        expected = before - sum(n / count * torch.from_numpy(values).double() for n, values in samples)
        torch.testing.assert_close(state.params[some].cpu().double(), expected.double(), rtol=1e-5, atol=1e-7)
        if round_ > 1:
            result["train"].append(trained - start)
            result["aggregate"].append(ended - begun)
    result |= {"memory": free - torch.cuda.mem_get_info(DEVICE)[0], "bytes": 4 * size}
    if rank == 0:
        send({"event": "result", "value": result})
    collectives.barrier()
    collectives.close()


def colocated(num_sites: int, precision: str, count: int) -> dict[str, Any]:
    results: list[dict[str, Any]] = []

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            results.append(event["value"])
        else:
            print(event, flush=True)

    memory = SharedMemory()
    with tempfile.TemporaryDirectory() as folder:
        free = torch.cuda.mem_get_info(DEVICE)[0]
        jobs = [(rank, num_sites, memory, folder, precision, count, free) for rank in range(num_sites)]
        launcher.run_children("gpu:work", jobs, [f"site {rank}" for rank in range(num_sites)], folder, keep)
    memory.close()
    return results[0] | {name: statistics.median(results[0][name]) for name in ("train", "aggregate")}


def limits(precision: str) -> tuple[float, float]:
    """FLOP/s of matrix products, and bytes per second read and written by a copy."""
    a, b = (torch.randn(8192, 8192, device=DEVICE, dtype=getattr(torch, precision)) for _ in range(2))
    source = torch.ones(2**28, device=DEVICE)
    target = torch.empty_like(source)

    def seconds(function: Any) -> float:
        function()
        torch.cuda.synchronize()
        return statistics.median(measure.timed(lambda: (function(), torch.cuda.synchronize())) for _ in range(9))

    return 2 * 8192**3 / seconds(lambda: a @ b), 2 * 4 * 2**28 / seconds(lambda: target.copy_(source))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this machine has no GPU that torch can use")
    measure.wait_until_quiet()
    precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    python, samplings = sys.executable, {"random": "the Trainer's default", "group_by_length": "its `group_by_length`"}
    if importlib.util.find_spec("accelerate") is None:  # the Trainer needs it
        try:
            python = measure.peer("trainer", "transformers==5.23.0", "accelerate==1.15.0", "fsspec", "numpy")
        except subprocess.CalledProcessError:
            print("note: accelerate is neither installed nor installable: the Trainer is left out", flush=True)
            samplings = {}
    # Show one GPU only: the Trainer would use all of them.
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    here = {"PYTHONPATH": f"{measure.ROOT}:{Path(__file__).parent}", "CUDA_VISIBLE_DEVICES": one}
    dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
    rate, bandwidth = measure.script(sys.executable, LIMITS, dtype, **here)
    print(
        f"{torch.cuda.get_device_name(DEVICE)}, torch {torch.__version__}, {precision}: {rate / 1e12:.0f} TFLOP/s, copy {bandwidth / 1e9:.0f} GB/s"
    )
    claims = []
    for shape in SHAPES:
        arguments = (shape, options.batches, precision)
        results = measure.in_turn(
            {
                "scaling_fl": lambda arguments=arguments: measure.script(sys.executable, OURS, *arguments, **here),
                **{
                    name: lambda arguments=arguments, name=name: measure.script(python, TRAINER, *arguments, name, **here)
                    for name in samplings
                },
            },
            options.repeats,
        )  # fmt: skip
        speed = {name: statistics.median(row[0] for row in rows) for name, rows in results.items()}
        used = {name: statistics.median(row[1] for row in rows) for name, rows in results.items()}
        mine = f"{speed['scaling_fl']:.0f}/s"
        for peer, name in samplings.items():
            ratio = f"{speed['scaling_fl'] / speed[peer]:.2f}"
            claims.append((f"{shape}, {precision}, against {name}", mine, f"{speed[peer]:.0f}/s", ratio, ""))
        use = f"{used['scaling_fl'] / 1e12:.0f} TFLOP/s"
        theirs = ", ".join(f"{used[name] / rate:.2f}" for name in samplings)
        share = f"{used['scaling_fl'] / rate:.2f}" + f" (Trainer {theirs})" * bool(theirs)
        claims.append((f"{shape}, against the GPU's matrix products", use, f"{rate / 1e12:.0f} TFLOP/s", share, ""))
    for sites in options.sites:
        found = colocated(sites, precision, options.batches * BATCH)
        moved = (sites + 1) * found["bytes"] / found["aggregate"]
        what = f"{sites} DistilBERT sites on the GPU, {found['through']}"
        memory = f"{options.batches * BATCH / found['train']:.0f}/s, {found['memory'] / 2**30:.1f} GiB"
        claims.append((f"{what}: training", memory, "", "", ""))
        ms = f"{1e3 * found['aggregate']:.1f} ms, {moved / 1e9:.0f} GB/s"
        claims.append((f"{what}: aggregation", ms, f"{bandwidth / 1e9:.0f} GB/s", f"{moved / bandwidth:.2f}", ""))
    measure.table(claims)


if __name__ == "__main__":
    main()
