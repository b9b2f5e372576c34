#!/usr/bin/env python
"""Aggregation of 110 M parameters between the sites of a machine, beside gloo's all-reduce and the memory's bandwidth.

    ./run-local.sh benchmarks/aggregation.py

Ours is the whole phase of a round: weights and checks exchanged, weighted mean, server step, everyone waits for everyone.
The bytes that must move are those of N reads and 1 write; a copy is 1 read and 1 write.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

import measure
import torch
import torch.distributed as dist
import transformers

from scaling_fl import launch
from scaling_fl.federation import Federation
from scaling_fl.memory import SharedMemory
from scaling_fl.server import SGD, ServerState

with torch.device("meta"):
    TENSORS = [p.numel() for p in transformers.BertForSequenceClassification(transformers.BertConfig()).parameters()]


def work(send: Any, rank: int, num_workers: int, memory: SharedMemory, folder: str, repeats: int) -> None:
    """One worker: each way in turn, `repeats` times. The seconds of a repeat are those of the slowest worker."""
    torch.set_num_threads(max(1, measure.CORES // num_workers))
    size = sum(TENSORS)
    federation = Federation(rank, ["cpu"] * num_workers, size, memory, f"file://{folder}/rendezvous")
    state = ServerState(federation.state[0], size, 0)
    buffer = torch.zeros(size)
    pieces = list(buffer.split(TENSORS))

    def ours() -> None:
        total = federation.total()
        total.add(rank, federation.row, 1 / num_workers)
        for part, delta in federation.mean(total):
            SGD().step(state, delta, part)

    def flat() -> None:
        dist.all_reduce(buffer)

    def per_tensor() -> None:
        for piece in pieces:
            dist.all_reduce(piece)

    ways = {"ours": ours, "flat all-reduce": flat, "all-reduce per tensor": per_tensor}
    for number in range(repeats + 1):
        for name, way in ways.items():
            federation.row.fill_(1e-3)
            federation.wait()
            start = time.perf_counter()
            way()
            seconds = max(federation.gather(time.perf_counter() - start))
            if rank == 0 and number:
                send({"event": "result", "way": name, "seconds": seconds})
    federation.leave()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sites", type=int, nargs="+", default=[2, 4, 8, 16])
    options = parser.parse_args()
    measure.wait_until_quiet()
    size = 4 * sum(TENSORS)
    print(f"{size / 1e6:.0f} MB of parameters")
    claims = []
    for sites in options.sites:
        seconds: dict[str, list[float]] = {}

        def keep(event: dict[str, Any], seconds: dict[str, list[float]] = seconds) -> None:
            if event["event"] == "result":
                seconds.setdefault(event["way"], []).append(event["seconds"])
            else:
                print(event)

        before = measure.copy_bandwidth()  # a machine's neighbours take their share of it, now less, now more
        memory = SharedMemory()
        with tempfile.TemporaryDirectory() as folder:
            jobs = [(rank, sites, memory, folder, options.repeats) for rank in range(sites)]
            launch.run("aggregation:work", jobs, [f"site {rank}" for rank in range(sites)], folder, keep)
        memory.close()
        bandwidth = (before + measure.copy_bandwidth()) / 2
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        mine = medians["ours"]
        speed = (sites + 1) * size / mine
        bar = {2: "≥ 0.45", 4: "≥ 0.60"}.get(sites, "")
        claims.append(
            (
                f"{sites} sites against copy bandwidth",
                f"{mine * 1e3:.0f} ms, {speed / 1e9:.1f} GB/s",
                f"{bandwidth / 1e9:.1f} GB/s",
                f"{speed / bandwidth:.2f}",
                bar,
            )
        )
        for name, bar in (
            ("flat all-reduce", {2: "≥ 3", 4: "≥ 6", 8: "≥ 6"}.get(sites, "")),
            ("all-reduce per tensor", "≥ 12"),
        ):
            claims.append(
                (
                    f"… against gloo, {name}",
                    f"{mine * 1e3:.0f} ms",
                    f"{medians[name] * 1e3:.0f} ms",
                    f"{medians[name] / mine:.1f}",
                    bar,
                )
            )
    measure.table(claims)


if __name__ == "__main__":
    main()
