"""Several sites that share a GPU: the time of their rounds, with a check of the mean, and their memory."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from gpu_training import DEVICE, module, resident

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site import Site
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.runtime import launcher


def work(
    send: Any,
    rank: int,
    num_sites: int,
    memory: SharedMemory,
    folder: str,
    precision: str,
    count: int,
    batch: int,
    exact: bool,
    free: int,
) -> None:
    """One of several sites on the GPU: time three rounds and check the mean. `free`: free bytes before the start.

    `exact`: whether sums are in fixed point, rather than in floats.
    """
    torch.set_num_threads(max(1, measure.CORES // num_sites))
    torch.cuda.set_device(DEVICE)
    size = Layout(module("DistilBERT")).size
    collectives = Collectives(rank, [str(DEVICE)] * num_sites, size, memory, f"file://{folder}/rendezvous", exact=exact)
    shared = collectives.worker_row.is_cuda
    home = resident(
        Path(folder) / str(rank), "DistilBERT", count, batch, precision, collectives.worker_row if shared else None
    )
    if rank == 0:
        collectives.state[0].copy_(home.model.flat)
    torch.cuda.empty_cache()
    collectives.barrier()
    state = ServerState(collectives.state[0], home.model.layout.trained, 0)
    shard = np.arange(rank, count, num_sites)
    some = slice(size // 2, size // 2 + 100_000)  # part of the encoder's matrices
    result: dict[str, Any] = {"through": collectives.transport_note or "CUDA IPC", "train": [], "aggregate": []}
    for round_ in range(1, 5):
        collectives.barrier()
        start = time.perf_counter()
        delta, _ = Site(rank, shard, home).train(state.params, round_)
        collectives.barrier()
        trained = time.perf_counter()
        before, sample = (t[some].to("cpu", copy=True) for t in (state.params, delta))
        assert sample.any(), "no site moved these parameters"
        samples = collectives.all_gather((len(shard), sample.numpy()))
        collectives.barrier()
        begun = time.perf_counter()
        total = collectives.weighted_sum()
        total.add(rank, delta, len(shard) / count)
        for part, piece in collectives.weighted_mean(total):
            SGD().step(state, piece, part)
        ended = time.perf_counter()
        expected = before - sum(n / count * torch.from_numpy(values).double() for n, values in samples)
        torch.testing.assert_close(state.params[some].cpu().double(), expected.double(), rtol=1e-5, atol=1e-7)
        if round_ > 1:
            result["train"].append(trained - start)
            result["aggregate"].append(ended - begun)
    result |= {"memory": free - torch.cuda.mem_get_info(DEVICE)[0], "bytes": 4 * size}
    if rank == 0:
        send({"event": "result", "value": result})
    collectives.close()


def colocated(num_sites: int, precision: str, count: int, batch: int, exact: bool) -> dict[str, Any]:
    """Seconds of training and aggregation, and bytes, of `num_sites` sites with `count` texts together."""
    results: list[dict[str, Any]] = []

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            results.append(event["value"])
        else:
            print(event, flush=True)

    memory = SharedMemory()
    with tempfile.TemporaryDirectory() as folder:
        free = torch.cuda.mem_get_info(DEVICE)[0]
        jobs = [(rank, num_sites, memory, folder, precision, count, batch, exact, free) for rank in range(num_sites)]
        launcher.run_children("gpu_sites:work", jobs, [f"site {rank}" for rank in range(num_sites)], folder, keep)
    memory.close()
    return results[0] | {name: statistics.median(results[0][name]) for name in ("train", "aggregate")}
