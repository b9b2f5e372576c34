#!/usr/bin/env python
"""A round with almost no training, against pfl-research, Flower's simulation, and the bare training steps.

    ./run-local.sh benchmarks/round_overhead.py

8 sites on the CPU train DistilBERT's shape (67 M random parameters). Each makes one SGD step per round on 4 texts of 16
tokens, with default dropout. There is no checkpoint, and no evaluation in the rounds that count. Ours is the real
command, with a process per core that hosts its part of the sites, and with a process per site. The peers follow their
documentation, in the fastest of the variants tried: pfl-research in one process with all threads, or with a process per
core; Flower with an actor per core that keeps its model, which beats one actor with all threads. Peers run with the
defaults of torch and the system. Bare steps also run with the memory settings of workers
(fork_server.LIBRARY_ENVIRONMENT), which any program could use.
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
import round_peers
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordPiece

from scaling_fl.runtime import fork_server

NUM_SITES, BATCH_SIZE, LENGTH = 8, 4, 16


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


def scaling_fl(folder: Path, num_rounds: int, num_processes: int) -> list[float]:
    """End times of the real command's rounds, but for the last, which is evaluated."""
    config = {
        "task_name": "csv", "train_path": folder / "train.csv", "test_path": folder / "test.csv",
        "text_column": "text", "label_column": "label", "model": folder / "model", "max_seq_len": LENGTH,
        "site_ids": str([-1] * num_processes).replace(" ", ""), "num_sites": NUM_SITES, "threads_per_site": 1,
        "batch_size": BATCH_SIZE, "optimiser": "sgd",
        "learning_rate": round_peers.LEARNING_RATE, "num_rounds": num_rounds + 1, "eval_every": num_rounds + 1,
        "checkpoints_dir": None,
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
    pfl = measure.peer("pfl", *round_peers.PFL_REQUIREMENTS)
    flower = measure.peer("flower", *round_peers.FLOWER_REQUIREMENTS)
    num_rounds = options.rounds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        measure.wait_until_quiet()

        runs: dict[str, Callable[[], list[float]]] = {
            "a process per core": lambda: scaling_fl(folder, num_rounds, measure.CORES),
            "a process per site": lambda: scaling_fl(folder, num_rounds, NUM_SITES),
            "bare, a process per core": lambda: round_peers.bare(folder, num_rounds, measure.CORES),
            "bare, a process per core, our settings": lambda: round_peers.bare(
                folder, num_rounds, measure.CORES, **fork_server.LIBRARY_ENVIRONMENT
            ),
            "bare, a process per site, our settings": lambda: round_peers.bare(
                folder, num_rounds, NUM_SITES, **fork_server.LIBRARY_ENVIRONMENT
            ),
            "pfl-research, one process": lambda: round_peers.pfl_research(pfl, folder, num_rounds, 1, NUM_SITES),
            "pfl-research, a process per core": lambda: round_peers.pfl_research(
                pfl, folder, num_rounds, measure.CORES, NUM_SITES
            ),
            "Flower": lambda: round_peers.flower(flower, folder, num_rounds, NUM_SITES),
        }
        results = measure.in_turn({name: (lambda run=run: timed(run)) for name, run in runs.items()}, options.repeats)

    rounds = {name: statistics.median(s for row in rows for s in row["rounds"]) for name, rows in results.items()}
    first = {name: statistics.median(row["first"] for row in rows) for name, rows in results.items()}
    fastest = min((name for name in rounds if name.startswith("pfl")), key=rounds.__getitem__)

    def against(
        seconds: dict[str, float], ours: str, peer: str, bar: str, faster: bool = False
    ) -> tuple[str, str, str, str]:
        mine, theirs = seconds[ours], seconds[peer]
        return f"{mine:.2f} s", f"{theirs:.2f} s", f"{theirs / mine if faster else mine / theirs:.2f}", bar

    measure.table(
        [
            (f"a round, against {fastest}", *against(rounds, "a process per core", fastest, "≥ 1.6", faster=True)),
            ("… against Flower", *against(rounds, "a process per core", "Flower", "≥ 4", faster=True)),
            ("… against the bare steps", *against(rounds, "a process per core", "bare, a process per core", "≤ 1.3")),
            (
                "… against the bare steps with our memory settings",
                *against(rounds, "a process per core", "bare, a process per core, our settings", "≤ 1.3"),
            ),
            (
                "a round with a process per site, against the same of the bare steps with our memory settings",
                *against(rounds, "a process per site", "bare, a process per site, our settings", "≤ 1.3"),
            ),
            ("start to first round, against Flower", *against(first, "a process per core", "Flower", "≤ 0.3")),
            (f"… against {fastest}", *against(first, "a process per core", fastest, "≤ 0.8")),
        ]
    )


if __name__ == "__main__":
    main()
