#!/usr/bin/env python
"""Time and memory of rounds of 100 sites out of 10,000, against 100 out of 100 and against pfl-research.

    ./run-local.sh benchmarks/hosting.py

The real command runs with a process per core on a model of BERT-tiny's shape (4.4 M random parameters). Each site makes
one SGD step per round on 4 texts of 16 tokens, with default dropout. There is no checkpoint, and no evaluation in the
rounds that count. The first round is a warm-up. pfl-research runs as in round_overhead.py, in one process with all
threads and with a process per core; the table shows the faster. Memory is the peak over the rounds that count, of all
processes together (our launcher and pfl-research's torchrun included), shared memory counted once.
"""

import argparse
import csv
import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import command
import measure
import numpy as np
import round_peers
import transformers

BATCH_SIZE, LENGTH = 4, 16
Row = tuple[str, str, str, str, str]
_INTERVAL = 0.25  # seconds between samples


class Memory:
    """Sample memory while the context is open: by default, that of all child processes."""

    def __init__(self, used: Callable[[], int] = lambda: command.memory(os.getpid(), itself=False)) -> None:
        self._used = used
        self._looks: list[tuple[float, int]] = []  # time, bytes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_INTERVAL):
            self._looks.append((time.time(), self._used()))

    def highest(self, start: float, end: float) -> int:
        """Peak bytes between two times."""
        return max(used for when, used in self._looks if start <= when <= end)


def data(folder: Path, num_sites: int) -> dict[str, Any]:
    """Write the data of `num_sites` sites. Returns the keys of the job."""
    place = folder / f"{num_sites} sites"
    place.mkdir()
    return command.data(place, num_sites * BATCH_SIZE, test_rows=2, words=LENGTH - 2) | {"num_sites": num_sites}


def write_batches(folder: Path, keys: dict[str, Any]) -> None:
    """Write the training texts as token ids (user, row, token), since pfl-research reads no text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    with open(keys["train_path"], newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    np.save(folder / "batches.npy", np.array(tokenizer(texts)["input_ids"]).reshape(-1, BATCH_SIZE, LENGTH))


def measured(run: Callable[[], list[float]]) -> dict[str, Any]:
    """Seconds of each round but the first, and peak memory in bytes. `run` returns the end time of each round."""
    with Memory() as memory:
        ends = run()
    seconds = [round(after - before, 3) for before, after in itertools.pairwise(ends)]
    return {"rounds": seconds, "memory": memory.highest(ends[0], ends[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=10_000)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    pfl = measure.peer("pfl", *round_peers.PFL_REQUIREMENTS)
    cohort, num_rounds = options.cohort, options.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command.model_folder(folder, "BERT-tiny")[0].rename(folder / "model")
        many, few = data(folder, options.sites), data(folder, cohort)
        write_batches(folder, many)
        measure.wait_until_quiet()

        def ours(keys: dict[str, Any]) -> list[float]:
            """End times of all rounds but the last, which is evaluated."""
            own = {
                "model": folder / "model", "site_ids": command.sites(measure.CORES), "threads_per_site": 1,
                "sites_per_round": cohort, "batch_size": BATCH_SIZE, "max_seq_len": LENGTH,
                "optimiser": "sgd", "learning_rate": round_peers.LEARNING_RATE,
                "num_rounds": num_rounds + 1, "eval_every": num_rounds + 1,
            }  # fmt: skip
            with command.Job(folder, keys | own) as job:
                rounds = job.end()
            return [rounds[number]["time"] for number in range(1, num_rounds + 1)]

        def peer(processes: int) -> list[float]:
            return round_peers.pfl_research(pfl, folder, num_rounds, processes, cohort)

        runs: dict[str, Callable[[], list[float]]] = {
            "many sites": lambda: ours(many),
            "few sites": lambda: ours(few),
            "pfl-research, one process": lambda: peer(1),
            "pfl-research, a process per core": lambda: peer(measure.CORES),
        }
        results = measure.in_turn({how: lambda run=run: measured(run) for how, run in runs.items()}, options.repeats)

    seconds = {how: statistics.median(s for row in rows for s in row["rounds"]) for how, rows in results.items()}
    memory = {how: statistics.median(row["memory"] for row in rows) for how, rows in results.items()}
    fastest = min((how for how in seconds if how.startswith("pfl")), key=seconds.__getitem__)
    claim = f"a round of {cohort} out of {options.sites:,} sites"

    def row(claim: str, values: dict[str, float], form: str, unit: float, other: str, bar: str) -> Row:
        mine, theirs = values["many sites"], values[other]
        ratio = mine / theirs if bar else theirs / mine
        return claim, form.format(mine / unit), form.format(theirs / unit), f"{ratio:.2f}", bar

    measure.table(
        [
            row(f"{claim}, against {cohort} out of {cohort}: time", seconds, "{:.2f} s", 1, "few sites", "≤ 1.10"),
            row("… memory of all processes", memory, "{:,.0f} MB", 1e6, "few sites", "≤ 1.10"),
            row(f"{claim}, against {fastest}: time", seconds, "{:.2f} s", 1, fastest, ""),
            row("… memory of all processes", memory, "{:,.0f} MB", 1e6, fastest, ""),
        ]
    )


if __name__ == "__main__":
    main()
