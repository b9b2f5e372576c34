#!/usr/bin/env python
"""Seconds and memory to read a data set of Yelp's size, against pandas and `datasets` on the same file.

    ./run-local.sh benchmarks/reading.py

The script writes a synthetic training file (650,000 reviews of 20 to 1,000 words) and a test file to a temporary folder.
Each reader reads the training file in its own process, and the readers alternate, so that noise hits all of them. Ours
also checks every value and loads the whole task: stars to classes, escapes to line breaks, errors by row.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np

# Each reads argv[1] (ours argv[2] as well) and prints seconds and peak memory, both without the imports.
READERS = {
    "scaling_fl, task yelp": """
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
config = Config(task_name="yelp", train_path=sys.argv[1], test_path=sys.argv[2])
load_task(Config(task_name="yelp", train_path=sys.argv[2], test_path=sys.argv[2]))  # imports
started()
task = load_task(config)
assert len(task.train) == int(sys.argv[3])
""",
    "pandas.read_csv": """
import pandas
pandas.read_csv(sys.argv[2], header=None)
started()
table = pandas.read_csv(sys.argv[1], header=None, names=["stars", "text"])
assert len(table) == int(sys.argv[3])
""",
    "pandas.read_csv and its texts as a list": """
import pandas
pandas.read_csv(sys.argv[2], header=None)[1].to_list()
started()
table = pandas.read_csv(sys.argv[1], header=None, names=["stars", "text"])
assert len(table["text"].to_list()) == int(sys.argv[3])
""",
    "datasets, csv": """
import datasets
datasets.disable_progress_bars()
started()
with tempfile.TemporaryDirectory() as folder:
    data = datasets.load_dataset("csv", data_files=sys.argv[1], cache_dir=folder, column_names=["stars", "text"])["train"]
    texts = data["text"][:]
assert len(texts) == int(sys.argv[3])
""",
}
FRAME = """
import json, resource, sys, tempfile, time
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def started():
    global began, before
    began, before = time.perf_counter(), peak()
{reader}
print(json.dumps([time.perf_counter() - began, peak() - before]))
"""


def write(path: Path, rows: int, seed: int) -> None:
    """Write reviews of log-normal lengths (median 100 words), a tenth with quotes, line breaks and non-ASCII letters."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    words = np.array(["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(30_000)])
    special = np.array(['""great""', "\\n\\n", "café", "it’s", "naïve"])
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            chosen = words[rng.integers(0, len(words), int(np.clip(rng.lognormal(np.log(100), 0.8), 20, 1000)))]
            if rng.random() < 0.1:
                chosen[rng.integers(0, len(chosen), 3)] = rng.choice(special, 3)
            file.write(f'"{rng.integers(1, 6)}","{" ".join(chosen)}"\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=650_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    peers = measure.peer("reading", "pandas==3.1.1", "datasets==5.2.0", "numpy")
    measure.wait_until_quiet()
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.csv", Path(folder) / "test.csv"
        write(train, options.rows, 0)
        write(test, 1000, 1)
        size = train.stat().st_size

        def run(name: str) -> list[float]:
            python = sys.executable if name.startswith("scaling_fl") else peers
            seconds_and_memory: list[float] = measure.script(
                python, FRAME.format(reader=READERS[name]), train, test, options.rows
            )
            return seconds_and_memory

        results = measure.in_turn({name: (lambda name=name: run(name)) for name in READERS}, options.repeats)
    print(f"{options.rows:,} rows, {size / 1e6:,.0f} MB; medians of {options.repeats}")
    medians = {name: [statistics.median(c) for c in zip(*rows, strict=True)] for name, rows in results.items()}
    (seconds, memory), *others = medians.values()
    rows = []
    for name, (peer_seconds, peer_memory) in zip(list(medians)[1:], others, strict=True):
        what = f"{size / 1e6:,.0f} MB of reviews read, against {name}"
        rows.append((f"{what}: time", f"{seconds:.1f} s", f"{peer_seconds:.1f} s", f"{seconds / peer_seconds:.1f}", ""))
        mine, theirs = f"{memory / 1e6:,.0f} MB", f"{peer_memory / 1e6:,.0f} MB"
        rows.append((f"{what}: memory", mine, theirs, f"{memory / peer_memory:.2f}", ""))
    measure.table(rows)


if __name__ == "__main__":
    main()
