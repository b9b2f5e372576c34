#!/usr/bin/env python
"""What choosing a round's sites takes when there are a million: time and memory of each worker.

    ./run-local.sh benchmarks/cohorts.py

A worker draws the cohort with its weights, deals it to 8 workers, and opens the shards of its own sites. Shards of 1 to 20
examples lie in the job's memory-mapped files. Memory is the peak that a worker allocates beside these files, in the first of
these rounds. The peer is a limit: 10 ms, and 64 MB.
"""

import argparse
import statistics
import tempfile
import tracemalloc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measure
import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.federated.worker_sites import Shards, WorkerSites, write_shards

NUM_WORKERS = 8
LIMIT, MEMORY = 0.010, 64e6  # seconds, bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    sizes = np.random.default_rng(0).integers(1, 21, options.sites)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        write_shards(Path(name), np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1]))
        measure.wait_until_quiet()
        for sampling in ("uniform", "poisson", "by_examples"):
            drawn: dict[str, Any] = (
                {"participation": options.cohort / options.sites}
                if sampling == "poisson"
                else {"sites_per_round": options.cohort}
            )
            resident: Any = types.SimpleNamespace(config=Config(sampling=sampling, **drawn))  # nothing is trained
            tracemalloc.start()
            sites = WorkerSites(resident, Shards(Path(name)), 0, NUM_WORKERS)
            assert len(list(sites.participants(1))) > options.cohort / NUM_WORKERS / 2
            used = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            rounds = iter(range(2, options.rounds + 2))

            def draw(sites: WorkerSites = sites, rounds: Iterator[int] = rounds) -> None:
                list(sites.participants(next(rounds)))

            seconds = statistics.median(measure.timed(draw) for _ in range(options.rounds))
            claim = f"{options.cohort:,} of {options.sites:,} sites chosen by `sampling={sampling}`"
            rows += [
                (f"{claim}: time", f"{1e3 * seconds:.1f} ms", f"{1e3 * LIMIT:.0f} ms", f"{seconds / LIMIT:.2f}", "≤ 1"),
                ("… memory", f"{used / 1e6:.0f} MB", f"{MEMORY / 1e6:.0f} MB", f"{used / MEMORY:.2f}", "≤ 1"),
            ]
    measure.table(rows)


if __name__ == "__main__":
    main()
