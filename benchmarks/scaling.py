#!/usr/bin/env python
"""Seconds per round when 1, 2, 4 or 8 sites hold the same data and share this machine's cores.

    ./run-local.sh benchmarks/scaling.py

The real command trains a model of MiniLM's shape (or --model) with AdamW and batches of 16. A round is the time between
two rounds' events: local training, aggregation and everything else. There are no checkpoints, and the only evaluation is
of one example after the last round. The first round is a warm-up. All texts have the same number of tokens, so that
large and small shards are padded alike.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import command
import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; default: random weights of MiniLM's shape")
    parser.add_argument("--sites", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    measure.wait_until_quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = command.data(folder, options.examples, test_rows=1, words=options.tokens) | {
            "model": options.model or command.model_folder(folder, "MiniLM")[0],
            "max_seq_len": options.tokens,
            "batch_size": 16,
            "num_rounds": options.rounds,
            "eval_every": 1000,
        }

        def run(sites: int) -> list[float]:
            """Seconds of each round but the first."""
            own = {"site_ids": command.sites(sites), "threads_per_site": max(1, measure.CORES // sites)}
            with command.Job(folder, keys | own) as job:
                rounds = job.end()
            training = [round(rounds[number]["metrics"]["seconds.train"], 2) for number in range(2, len(rounds))]
            print(f"    of which local training {training}", flush=True)
            return [round(rounds[number]["time"] - rounds[number - 1]["time"], 3) for number in range(2, len(rounds))]

        results = measure.in_turn({f"{n} sites": lambda n=n: run(n) for n in options.sites}, options.repeats)
    medians = {name: statistics.median(value for run in runs for value in run) for name, runs in results.items()}
    first, *others = medians
    measure.table(
        [
            (
                f"a round of {options.examples} examples, {name} against {first.removesuffix('s')}",
                f"{medians[name]:.2f} s",
                f"{medians[first]:.2f} s",
                f"{medians[name] / medians[first]:.2f}",
                "≤ 1.25",
            )
            for name in others
        ]
    )


if __name__ == "__main__":
    main()
