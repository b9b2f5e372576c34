#!/usr/bin/env python
"""How much longer a round takes while the previous checkpoint is written to storage of 50 MB/s.

    ./run-local.sh benchmarks/checkpoint.py

The real preparation and workers run in processes that register this script's file system, a folder behind a slow line.
With checkpoint_every=2, every second round overlaps a write and its neighbours don't, so one job measures both in turn.
The delay is the median difference between a round with a write and the mean of its neighbours; its error is estimated
from the quartiles. The first rounds don't count. Rounds last longer than a write. There are two cases: one site on one
thread, which leaves a core free for the writer (as sites on GPUs do), and one site per core, where the writer competes
with training. The peer is a copy of the state in memory.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import command
import fsspec
import measure
import torch
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from scaling_fl.config.schema import Config
from scaling_fl.federated.run_plan import Plan
from scaling_fl.progress import Event, Send
from scaling_fl.runtime import launcher, preparation, worker

SPEED = 50e6  # bytes per second
PIECE = 2**20  # bytes


class Throttled(DirFileSystem):
    """A remote store behind a line of `SPEED`. It discards what it receives."""

    protocol = "throttled"

    def __init__(self, **options: Any):
        super().__init__(path="/", fs=LocalFileSystem(), **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("throttled://")

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        start, sent = time.monotonic(), 0
        with open(lpath, "rb") as source:
            while piece := source.read(PIECE):
                sent += len(piece)
                time.sleep(max(0.0, start + sent / SPEED - time.monotonic()))
        Path(rpath).touch()


fsspec.register_implementation("throttled", Throttled)


def prepare(send: Send, config: Config, folder: str) -> None:
    """The preparation, in a process that has registered the file system."""
    preparation.prepare(send, config, folder)


def work(send: Send, plan: Plan, rank: int, memory: Any) -> None:
    """A worker, in such a process."""
    worker.work(send, plan, rank, memory)


def run(config: Config) -> tuple[list[float], list[float], list[float]]:
    """Seconds of the rounds, delays of the rounds that overlap a write, and seconds of the writes."""
    times: dict[int, float] = {}
    writes: list[float] = []
    plans: list[Plan] = []

    def keep(event: Event) -> None:
        match event["event"]:
            case "prepared":
                plans.append(event["plan"])
            case "round":
                times[event["round"]] = time.perf_counter()
            case "checkpoint":
                writes.append(event["seconds"])

    with tempfile.TemporaryDirectory() as folder:
        launcher.run_children("checkpoint:prepare", [(config, folder)], ["the preparation"], folder, keep)
        (plan,) = plans
        memory = launcher.SharedMemory()
        jobs = [(plan, rank, memory) for rank in range(len(plan.devices))]
        launcher.run_children("checkpoint:work", jobs, [f"site {rank}" for rank in range(len(jobs))], folder, keep)
        memory.close()
    seconds = {number: times[number] - times[number - 1] for number in times if number > 1}
    delays = [
        seconds[number] - (seconds[number - 1] + seconds[number + 1]) / 2 for number in range(5, config.num_rounds, 2)
    ]
    if max(writes) > min(seconds.values()):
        print("note: a write took longer than a round; raise --examples")
    return list(seconds.values()), delays, writes


def copy_seconds(size: int, repeats: int = 9) -> tuple[float, float]:
    """Seconds to copy `size` float32 values with one thread, into touched and into fresh memory."""
    torch.set_num_threads(1)
    source = torch.ones(size)
    target = torch.zeros(size)
    used = [measure.timed(lambda: target.copy_(source)) for _ in range(repeats)]
    fresh = [measure.timed(source.clone) for _ in range(repeats)]
    return statistics.median(used), statistics.median(fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=112, help="per site")
    parser.add_argument("--rounds", type=int, default=32)
    options = parser.parse_args()
    measure.wait_until_quiet()
    claims = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, size = command.model_folder(folder, "MiniLM")
        copy, fresh = copy_seconds(size)
        print(
            f"a state of {4 * size / 1e6:.0f} MB; a copy takes {copy * 1e3:.0f} ms, {fresh * 1e3:.0f} ms to fresh memory"
        )
        cases = {"a free core": 1, f"{measure.CORES} sites and all cores busy": measure.CORES}
        for case, sites in cases.items():
            files = command.data(folder, options.examples * sites, test_rows=1, words=48)
            config = Config(
                **{key: str(value) for key, value in files.items()},
                model=str(model),
                max_seq_len=48,
                site_ids=(-1,) * sites,
                threads_per_site=1,
                batch_size=16,
                num_rounds=options.rounds,
                eval_every=1000,
                checkpoint_every=2,
                job_name="checkpoint",
                checkpoints_dir=f"throttled://{folder}/{sites}",
            )
            seconds, delays, writes = run(config)
            lower, delay, upper = statistics.quantiles(delays, n=4)
            error = 0.93 * (upper - lower) / len(delays) ** 0.5  # standard error of a median of normal values
            print(
                f"{case}: rounds of {statistics.median(seconds):.2f} s, writes of {statistics.median(writes):.1f} s "
                f"(at most {max(writes):.1f}), delays in ms: {[round(1e3 * value) for value in delays]}",
                flush=True,
            )
            claims.append(
                (
                    f"delay that a checkpoint adds to a round, with {case}, in units of one copy of the state",
                    f"{delay * 1e3:.0f} ± {error * 1e3:.0f} ms",
                    f"{copy * 1e3:.0f} ms",
                    f"{delay / copy:.1f}",
                    "≤ 2",
                )
            )
    measure.table(claims)


if __name__ == "__main__":
    main()
