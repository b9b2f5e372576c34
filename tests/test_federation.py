from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from scaling_fl import federation as federation_module
from scaling_fl.errors import JobFailed, PeerLost
from scaling_fl.federation import Federation, WeightedSum
from scaling_fl.memory import SharedMemory

SIZE = 1003  # not a multiple of the number of workers


def deltas(rank: int) -> list[tuple[int, torch.Tensor, int]]:
    """(site, delta, examples): worker 0 hosts one site, worker 1 two, worker 2 none."""
    sites = {0: [(0, 5)], 1: [(1, 9), (2, 26)], 2: []}[rank]
    return [(site, torch.randn(SIZE, generator=torch.Generator().manual_seed(site)), n) for site, n in sites]


def aggregate(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> dict[str, Any]:
    federation_module._PIECE = 100
    federation = Federation(rank, num_workers, SIZE, memory, folder / "rendezvous")
    calls = {"all_reduce": 0, "barrier": 0}
    for name in calls:
        original = getattr(dist, name)

        def counted(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _original(*args, **kwargs)

        setattr(dist, name, counted)
    hosted = deltas(rank)
    total = WeightedSum(single=len(hosted) == 1)
    for site, delta, examples in hosted:
        if len(hosted) == 1:  # as a lone site on the CPU does: its model lives in the worker's row
            federation.row.copy_(delta)
            delta = federation.row
        total.add(site, delta, examples)
    pieces = []
    for part, delta in federation.mean(total):
        federation.state[part] = delta
        pieces.append((part.start, part.stop))
    state = federation.state.clone().numpy()
    gathered = federation.gather({"rank": rank})
    federation.wait()
    federation.leave()
    return {"state": state, "pieces": pieces, "calls": calls, "gathered": gathered}


def test_the_mean_is_weighted_by_examples_whoever_hosts_the_sites(run_distributed: Any) -> None:
    results = run_distributed(aggregate, 3)
    everyone = [d for rank in range(3) for d in deltas(rank)]
    expected = sum(delta.double() * examples / 40 for _, delta, examples in everyone)
    for result in results:
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        # Weights are exchanged, then whether all is finite: no collective per tensor. The others belong to this test.
        assert result["calls"] == {"all_reduce": 2 + 2, "barrier": 1}
    # Parts of 334, 334 and 335 values in pieces of up to 100: disjoint, and all of it.
    bounds = sorted(piece for result in results for piece in result["pieces"])
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds)][:-1]
    assert bounds[-1][1] == SIZE
    assert [len(result["pieces"]) for result in results] == [4, 4, 4]


def diverge(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> str:
    federation = Federation(rank, num_workers, SIZE, memory, folder / "rendezvous")
    total = WeightedSum(single=True)
    total.add(rank + 4, torch.full((SIZE,), float("nan") if rank == 1 else 1.0), 1)
    try:
        list(federation.mean(total))
    except JobFailed as error:
        return str(error)
    return "no error"


def test_a_delta_that_is_not_finite_stops_every_worker_and_names_the_site(run_distributed: Any) -> None:
    messages = run_distributed(diverge, 3)
    assert len(set(messages)) == 1
    assert messages[0].startswith("the parameters of site 5 are no longer finite")


def lose_a_peer(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> str:
    federation = Federation(rank, num_workers, 1, memory, folder / "rendezvous")
    federation.wait()
    if rank == 1:
        federation.leave()
        return "left"
    try:
        federation.wait()
    except PeerLost:
        return "lost"
    return "no error"


def test_a_broken_connection_is_told_from_other_errors(run_distributed: Any) -> None:
    assert run_distributed(lose_a_peer, 2) == ["lost", "left"]


@pytest.mark.parametrize("single", [True, False])
def test_a_weighted_sum_survives_the_reuse_of_the_buffer(single: bool) -> None:
    buffer = torch.ones(3)
    total = WeightedSum(single)
    total.add(0, buffer, 2)
    if not single:
        buffer.fill_(10.0)  # the next site trains in it
        total.add(1, buffer, 3)
    assert total.value is not None
    assert (total.scale * total.value).tolist() == ([2.0] * 3 if single else [32.0] * 3)
    assert total.sites == ([0] if single else [0, 1])
    assert total.weight == (2 if single else 5)
