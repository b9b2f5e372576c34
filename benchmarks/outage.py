#!/usr/bin/env python
"""How much longer a round takes while MongoDB is out: connections are refused, or accepted and never answered.

    ./run-local.sh benchmarks/outage.py

The real command trains a tiny model on 2 sites on the CPU, with checkpoints. Its runs alternate with the same job without
a database. Compared are the median of all rounds but the first, and the longest round.
"""

import argparse
import itertools
import socket
import statistics
import tempfile
from pathlib import Path

import command
import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    measure.wait_until_quiet()
    with tempfile.TemporaryDirectory() as name, socket.create_server(("127.0.0.1", 0)) as silent:
        folder = Path(name)
        keys = command.data(folder, 400, test_rows=10, words=16) | {
            "model": "tiny",
            "site_ids": command.sites(2),
            "threads_per_site": 1,
            "num_rounds": options.rounds,
            "num_local_epochs": 3,
            "job_name": "outage",
            "checkpoints_dir": "out",
        }

        def run(host: str) -> list[float]:
            """Seconds of each round but the first."""
            with command.Job(folder, keys, SACRED_HOST=host, SACRED_DATABASE="lab" if host else "") as job:
                times = [event["time"] for _, event in sorted(job.end().items())]
            return [round(after - before, 3) for before, after in itertools.pairwise(times)][1:]

        hosts = {"none": "", "refuses": "127.0.0.1:1", "never answers": f"127.0.0.1:{silent.getsockname()[1]}"}
        results = measure.in_turn({how: lambda host=host: run(host) for how, host in hosts.items()}, options.repeats)
    seconds = {how: list(itertools.chain(*runs)) for how, runs in results.items()}
    medians = {how: statistics.median(values) for how, values in seconds.items()}
    longest = {how: max(values) for how, values in seconds.items()}
    claims = []
    for how in ("refuses", "never answers"):
        claims += [
            (
                f"a round while MongoDB {how}, against one without it",
                f"{medians[how]:.3f} s",
                f"{medians['none']:.3f} s",
                f"{medians[how] / medians['none']:.2f}",
                "≤ 1.25",
            ),
            (
                f"… longest of {len(seconds[how])} rounds, in seconds above the longest without it",
                f"{longest[how]:.3f} s",
                f"{longest['none']:.3f} s",
                f"{longest[how] - longest['none']:.2f}",
                "≤ 1",
            ),
        ]
    measure.table(claims)


if __name__ == "__main__":
    main()
