#!/usr/bin/env python
"""Aggregation of 110 M parameters between the sites of one machine, against gloo's all-reduce and memory bandwidth.

    ./run-local.sh benchmarks/aggregation.py

Our time covers the whole aggregation phase of a round: exchange of weights and checks, weighted mean, server step,
barrier. N reads and 1 write must move through memory; a copy is 1 read and 1 write. Float sums (exact_sum=False) and
fixed-point sums (the default) are measured one after the other, with one site per worker and with several. gloo sums
floats, so its runs alternate with ours for floats.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import measure
import torch
import torch.distributed as dist
import transformers

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState
from scaling_fl.runtime import launcher

with torch.device("meta"):
    TENSORS = [p.numel() for p in transformers.BertForSequenceClassification(transformers.BertConfig()).parameters()]

HOSTS, HOSTED = 2, 4  # workers, and sites per worker
# Seconds of a round of 12,000 AG News texts on MiniLM, at the 52.9 texts/s that local_training.py measured.
MINILM, EPOCH = 22.7e6, 12_000 / 52.9
ADDED = "time that exact_sum adds to a round, as a share of a local epoch on AG News"


def work(
    send: Any, rank: int, num_workers: int, memory: SharedMemory, folder: str, repeats: int, exact: bool, hosted: int
) -> None:
    """One worker: run each variant in turn, `repeats` times. The slowest worker's seconds count.

    `hosted` is the number of sites per worker, without peers; 0 means one site, whose delta is already in its row.
    """
    torch.set_num_threads(max(1, measure.CORES // num_workers))
    size = sum(TENSORS)
    collectives = Collectives(
        rank, ["cpu"] * num_workers, size, memory, f"file://{folder}/rendezvous", exact=exact, single_site=not hosted
    )
    state = ServerState(collectives.state[0], size, 0)
    home, buffer = collectives.model_buffer(torch.device("cpu")), torch.zeros(0 if hosted else size)
    pieces = list(buffer.split(TENSORS)) if len(buffer) else []
    sites = max(1, hosted)

    def ours() -> None:
        total = collectives.weighted_sum()
        for number in range(sites):
            total.add(rank * sites + number, home, 1 / (num_workers * sites))
        for part, delta in collectives.weighted_mean(total):
            SGD().step(state, delta, part)

    def flat() -> None:
        dist.all_reduce(buffer)

    def per_tensor() -> None:
        for piece in pieces:
            dist.all_reduce(piece)

    ways: dict[str, Callable[[], None]] = {"ours": ours}
    if not (exact or hosted):
        ways |= {"flat all-reduce": flat, "all-reduce per tensor": per_tensor}
    for number in range(repeats + 1):
        for name, way in ways.items():
            home.fill_(1e-3)
            collectives.barrier()
            start = time.perf_counter()
            way()
            seconds = max(collectives.all_gather(time.perf_counter() - start))
            if rank == 0 and number:
                send({"event": "result", "way": name, "seconds": seconds})
    collectives.close()


def medians(num_workers: int, repeats: int, exact: bool, hosted: int = 0) -> dict[str, float]:
    """Median seconds of each variant."""
    seconds: dict[str, list[float]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            seconds.setdefault(event["way"], []).append(event["seconds"])
        else:
            print(event)

    memory = SharedMemory()
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(rank, num_workers, memory, folder, repeats, exact, hosted) for rank in range(num_workers)]
        launcher.run_children("aggregation:work", jobs, [f"worker {rank}" for rank in range(num_workers)], folder, keep)
    memory.close()
    found = {name: statistics.median(values) for name, values in seconds.items()}
    way = f"{num_workers} workers of {hosted or 1} sites, {'exact' if exact else 'floats'}"
    print(f"  {way}: {', '.join(f'{name} {value * 1e3:.0f} ms' for name, value in found.items())}", flush=True)
    return found


def share(claim: str, exact: float, floats: float, bar: str) -> tuple[str, str, str, str, str]:
    """What exact sums add to a round of MiniLM, as a share of the round's local training."""
    added = (exact - floats) * MINILM / sum(TENSORS)
    return claim, f"{added * 1e3:.1f} ms", f"{EPOCH:.0f} s", f"{added / EPOCH:.5f}", bar


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
        before = measure.copy_bandwidth()  # other tenants of the machine make it vary
        peers = medians(sites, options.repeats, exact=False)
        floats = peers.pop("ours")
        between = measure.copy_bandwidth()
        exact = medians(sites, options.repeats, exact=True)["ours"]
        after = measure.copy_bandwidth()
        for how, mine, bandwidth, bar in (
            ("floats", floats, (before + between) / 2, {2: "≥ 0.45", 4: "≥ 0.60"}.get(sites, "")),
            ("fixed point", exact, (between + after) / 2, ""),
        ):
            speed = (sites + 1) * size / mine
            claims.append(
                (
                    f"{sites} sites against copy bandwidth, {how}",
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
                    f"… floats against gloo, {name}",
                    f"{floats * 1e3:.0f} ms",
                    f"{peers[name] * 1e3:.0f} ms",
                    f"{peers[name] / floats:.1f}",
                    bar,
                )
            )
        peer = peers["flat all-reduce"]
        claims.append(
            (
                "… fixed point against gloo, flat all-reduce",
                f"{exact * 1e3:.0f} ms",
                f"{peer * 1e3:.0f} ms",
                f"{peer / exact:.1f}",
                "",
            )
        )
        if sites == 4:
            claims.append(share(ADDED, exact, floats, "≤ 0.02"))
    floats, exact = (medians(HOSTS, options.repeats, how, HOSTED)["ours"] for how in (False, True))
    per_site = (exact / HOSTED, floats / HOSTED)
    claims.append(
        (
            f"aggregation time per site with {HOSTED} sites on each of {HOSTS} workers, fixed point against floats",
            *(f"{seconds * 1e3:.0f} ms" for seconds in per_site),
            f"{exact / floats:.2f}",
            "",
        )
    )
    claims.append(share(f"… {ADDED}", exact, floats, "≤ 0.02"))
    measure.table(claims)


if __name__ == "__main__":
    main()
