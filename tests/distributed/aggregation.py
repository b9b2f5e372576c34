"""The deltas of three sites, and a worker that takes part in their sum."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from scaling_fl.distributed import collectives as collectives_module
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory

SIZE = 1010  # not a multiple of the number of workers; even, so that rows are aligned for int64


def deltas(rank: int) -> list[tuple[int, torch.Tensor, int]]:
    """(site, delta, examples): worker 0 hosts one site, worker 1 two, worker 2 none."""
    sites = {0: [(0, 5)], 1: [(1, 9), (2, 26)], 2: []}[rank]
    return [(site, torch.randn(SIZE, generator=torch.Generator().manual_seed(site)), n) for site, n in sites]


def aggregate(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str], exact: bool = True
) -> dict[str, Any]:
    collectives_module.CHUNK = dict.fromkeys(collectives_module.CHUNK, 100)
    collectives = Collectives(rank, places, SIZE, memory, f"file://{folder}/rendezvous", exact=exact, single_site=False)
    calls = {"all_reduce": 0, "barrier": 0}
    for name in calls:
        original = getattr(dist, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    total = collectives.weighted_sum()
    for site, delta, examples in deltas(rank):
        total.add(site, delta, examples / 40)
    pieces = []
    for part, delta in collectives.weighted_mean(total):
        collectives.state[0][part] = delta
        pieces.append((part.start, part.stop))
    state = collectives.state[0].to("cpu", copy=True).numpy()
    gathered = collectives.all_gather({"rank": rank})
    collectives.close()
    return {
        "state": state, "pieces": pieces, "calls": calls, "gathered": gathered,
        "note": collectives.transport_note, "on gpu": collectives.worker_row.is_cuda,
    }  # fmt: skip


def assert_mean(results: Sequence[dict[str, Any]]) -> None:
    """Every worker of `aggregate` has the same state: the deltas' mean, weighted by examples."""
    everyone = [delta for rank in range(3) for delta in deltas(rank)]
    expected = sum(delta.double() * examples / 40 for _, delta, examples in everyone)
    for result in results:
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])
