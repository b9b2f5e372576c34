#!/usr/bin/env python
"""Sites that train adapters of one language model: memory of a further process, and rounds of 8 sites with one step each.

    ./run-local.sh benchmarks/lora.py --model models/smollm2

The real command trains LoRA of rank 8 on all linear layers with AdamW, on 2 blocks of 64 tokens a step, and then on one of
32. There is no checkpoint, and no evaluation in the rounds that count. Memory is the peak over these rounds of all processes together, memory
that they share counted once. "What a step takes" is the growth of a bare peft process from the loaded model to the peak of its
steps: gradients, the optimiser's state and activations. The peers are bare peft processes, which load the model's file each,
and Flower's simulation with an actor per core: with FlowerTune's client, which loads the model at each call, and with
one that keeps it.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import hosting
import lora_peers
import measure
import numpy as np
import transformers

NUM_SITES = 8
STEPS = ((2, 64), (1, 32))  # blocks, and tokens of each


def make(folder: Path, model: Path, batch_size: int, length: int) -> dict[str, Any]:
    """Write texts of one block's length, and blocks of as many tokens for the peers. Returns the keys of the job."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    words = [tokenizer.decode([number]) for number in rng.integers(1000, 20000, 2000)]
    plain = [word.strip() for word in words if word.strip().isalpha()]
    for name, number in (("train.txt", NUM_SITES * batch_size), ("test.txt", 1)):
        (folder / name).write_text("".join(" ".join(rng.choice(plain, 2 * length)) + "\n" for _ in range(number)))
    np.save(folder / "batches.npy", rng.integers(1000, 20000, (NUM_SITES, batch_size, length)))
    return {
        "task_name": "lm", "train_path": folder / "train.txt", "test_path": folder / "test.txt", "model": model,
        "trainable": "lora", "lora_rank": lora_peers.RANK, "max_seq_len": length, "batch_size": batch_size,
        "num_local_steps": 1, "num_sites": NUM_SITES, "learning_rate": lora_peers.LEARNING_RATE,
    }  # fmt: skip


def ours(folder: Path, keys: dict[str, Any], processes: int, num_rounds: int) -> list[float]:
    """End times of all rounds but the last, which is evaluated."""
    own = {
        "site_ids": command.sites(processes), "threads_per_site": max(1, measure.CORES // processes),
        "num_rounds": num_rounds + 1, "eval_every": num_rounds + 1,
    }  # fmt: skip
    with command.Job(folder, keys | own) as job:
        rounds = job.end()
    return [rounds[number]["time"] for number in range(1, num_rounds + 1)]


def peak(run: Callable[[], list[float]]) -> float:
    """Peak bytes over the rounds after the first."""
    with hosting.Memory() as memory:
        ends = run()
    return memory.highest(ends[0], ends[-1])


def timed(run: Callable[[], list[float]]) -> dict[str, Any]:
    """Seconds from the start of a process to the end of its first round, and of each further round."""
    start = time.time()
    ends = run()
    return {"first": round(ends[0] - start, 1), "rounds": [round(b - a, 3) for a, b in itertools.pairwise(ends)]}


def memory_rows(
    folder: Path, model: Path, keys: dict[str, Any], counts: list[int]
) -> list[tuple[str, str, str, str, str]]:
    grown = lora_peers.bare(model, folder, 1, 1)["grown"]
    python = measure.peer("flower-lora", *lora_peers.FLOWER_REQUIREMENTS)
    runs: dict[str, Callable[[int], list[float]]] = {
        "scaling_fl": lambda number: ours(folder, keys, number, 2),
        "bare peft processes": lambda number: lora_peers.bare(model, folder, 2, number)["ends"],
        "FlowerTune": lambda number: lora_peers.flower(python, model, folder, 2, NUM_SITES, keep=False, actors=number),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for processes in counts:
        for name, run in runs.items():
            found[name].append(peak(lambda run=run, number=processes: run(number)))
        print(f"  {processes} processes: {[f'{values[-1] / 1e6:,.0f} MB' for values in found.values()]}", flush=True)
    further = {name: (values[-1] - values[0]) / (counts[-1] - counts[0]) for name, values in found.items()}
    mine, theirs, flower = further.values()
    return [
        ("memory of a further process with LoRA, against what a step takes", f"{mine / 1e6:,.0f} MB", f"{grown / 1e6:,.0f} MB",
         f"{mine / grown:.2f}", "≤ 1.25"),
        ("… against a further bare peft process", f"{mine / 1e6:,.0f} MB", f"{theirs / 1e6:,.0f} MB", f"{theirs / mine:.2f}", ""),
        ("… against a further actor of FlowerTune", f"{mine / 1e6:,.0f} MB", f"{flower / 1e6:,.0f} MB", f"{flower / mine:.2f}", ""),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a language model, such as SmolLM2-135M")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--leave-out", choices=["memory", "times"])
    options = parser.parse_args()
    model, num_rounds = options.model.resolve(), options.rounds
    with tempfile.TemporaryDirectory() as name:
        folders = {size: Path(name) / f"{size[0] * size[1]}" for size in STEPS}
        keys = {size: make(folder, model, *size) for size, folder in folders.items()}
        rows = []
        if options.leave_out != "memory":
            rows += memory_rows(folders[STEPS[0]], model, keys[STEPS[0]], options.processes)
        if options.leave_out != "times":
            for size, folder in folders.items():
                print(f"steps of {size[0]} × {size[1]} tokens", flush=True)
                rows += time_rows(folder, model, keys[size], num_rounds, options.repeats, size[0] * size[1])
    measure.table(rows)


def time_rows(
    folder: Path, model: Path, keys: dict[str, Any], num_rounds: int, repeats: int, tokens: int
) -> list[tuple[str, str, str, str, str]]:
    flower = measure.peer("flower-lora", *lora_peers.FLOWER_REQUIREMENTS)
    measure.wait_until_quiet()
    runs: dict[str, Callable[[], list[float]]] = {
        "scaling_fl": lambda: ours(folder, keys, measure.CORES, num_rounds),
        "bare": lambda: lora_peers.bare(model, folder, num_rounds, measure.CORES)["ends"],
        "FlowerTune": lambda: lora_peers.flower(flower, model, folder, num_rounds, NUM_SITES, keep=False),
        "Flower": lambda: lora_peers.flower(flower, model, folder, num_rounds, NUM_SITES, keep=True),
    }
    results = measure.in_turn({name: (lambda run=run: timed(run)) for name, run in runs.items()}, repeats)
    seconds = {name: statistics.median(s for row in rows for s in row["rounds"]) for name, rows in results.items()}
    first = {name: statistics.median(row["first"] for row in rows) for name, rows in results.items()}
    mine, start = seconds["scaling_fl"], first["scaling_fl"]
    claim = f"a round of {NUM_SITES} sites, one LoRA step of {tokens} tokens each"

    def row(claim: str, ours: float, theirs: float, ratio: float, bar: str) -> tuple[str, str, str, str, str]:
        return claim, f"{ours:.2f} s", f"{theirs:.2f} s", f"{ratio:.2f}", bar

    return [
        row(f"{claim}, against FlowerTune", mine, seconds["FlowerTune"], seconds["FlowerTune"] / mine, "≥ 2"),
        row("… against Flower's actors that keep the model", mine, seconds["Flower"], seconds["Flower"] / mine, ""),
        row("… against bare peft steps, a process per core", mine, seconds["bare"], mine / seconds["bare"], "≤ 1.2"),
        row(
            "start to first such round, against FlowerTune",
            start,
            first["FlowerTune"],
            first["FlowerTune"] / start,
            "≥ 3",
        ),
        row("… against Flower's actors that keep the model", start, first["Flower"], first["Flower"] / start, ""),
    ]


if __name__ == "__main__":
    main()
