"""Weighted sums over workers: the right mean, exact, finite, and never from a stale row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from scaling_fl.distributed import collectives as collectives_module
from scaling_fl.distributed import fused_sum
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed, PeerLost
from tests.distributed.aggregation import SIZE, aggregate, assert_mean


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(
    ("places", "lengths"),
    [
        (["cpu", "cpu", "cpu"], [[336, 337, 337]]),
        (["cpu:1", "cpu:0", "cpu:1"], [[505, 505], [1010]]),  # two memory domains, like two GPUs
        (["cpu:0", "cpu:0", "cpu:1"], [[505, 505], [1010]]),  # the second domain has no site in this round
        (["cpu:0", "cpu:1", "cpu:2"], [[1010], [1010], [1010]]),
    ],
)
def test_the_mean_is_weighted_by_examples_for_any_assignment_of_sites(
    run_distributed: Any, places: list[str], lengths: list[list[int]], exact: bool
) -> None:
    results = run_distributed(aggregate, 3, places, exact)
    assert_mean(results)
    for result in results:
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    # Aggregation exchanges the weights, then whether all values are finite: no collective per tensor. The other calls are
    # this test's own. Between domains, the leaders' all-reduce is enclosed in two barriers.
    several = len(set(places)) > 1
    leaders = [places.index(place) for place in set(places)]
    assert [result["calls"] for result in results] == [
        {"all_reduce": 2 + 2 + (several and rank in leaders), "barrier": 1 + 2 * several} for rank in range(3)
    ]
    # In each domain the slices partition the state; they come in chunks of up to 100 values.
    for place, expected_lengths in zip(dict.fromkeys(places), lengths, strict=True):
        parts = [result["pieces"] for result, own in zip(results, places, strict=True) if own == place]
        assert [part[-1][1] - part[0][0] for part in parts] == expected_lengths
        bounds = sorted(piece for part in parts for piece in part)
        assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds)][:-1]
        assert bounds[-1][1] == SIZE
        assert max(stop - start for start, stop in bounds) == 100


def lone(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str], order: list[int]
) -> np.ndarray:
    """Worker N has the site `order[N]`, whose delta is in the worker's row."""
    collectives = Collectives(rank, places, SIZE, memory, f"file://{folder}/rendezvous", exact=True)
    total, site = collectives.weighted_sum(), order[rank]
    home = collectives.model_buffer(torch.device("cpu"))
    home.copy_(torch.randn(SIZE, generator=torch.Generator().manual_seed(site)))
    total.add(site, home, [5, 9, 26][site] / 40)
    for part, delta in collectives.weighted_mean(total):
        collectives.state[0][part] = delta
    state = collectives.state[0].numpy().copy()
    collectives.close()
    return state


def test_exact_sums_are_bitwise_equal_for_any_assignment_of_sites(run_distributed: Any) -> None:
    """One worker per site, in any order, or several sites on one worker; one memory domain or several."""
    states = [result["state"] for result in run_distributed(aggregate, 3, ["cpu"] * 3)]
    states += run_distributed(lone, 3, ["cpu"] * 3, [0, 1, 2])
    states += run_distributed(lone, 3, ["cpu"] * 3, [2, 0, 1])
    states += run_distributed(lone, 3, ["cpu:0", "cpu:1", "cpu:0"], [1, 2, 0])
    for state in states:
        assert np.array_equal(state, states[0])
    floats = run_distributed(aggregate, 3, ["cpu"] * 3, False)[0]["state"]
    assert not np.array_equal(floats, states[0]), "otherwise this test shows nothing"


def subtract(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str], how: dict[str, bool], late: bool
) -> np.ndarray:
    """Sites send parameters, of which the reader makes the delta if `late`. The server moves by the mean."""
    collectives_module.CHUNK = dict.fromkeys(collectives_module.CHUNK, 100)
    collectives = Collectives(rank, places, SIZE, memory, f"file://{folder}/rendezvous", **how)  # type: ignore[arg-type]
    server = torch.randn(SIZE, generator=torch.Generator().manual_seed(99))
    collectives.state[0] = server
    collectives.barrier()
    total = collectives.weighted_sum()
    for site in [rank] if how["single_site"] else [rank, rank + 3]:
        params = torch.randn(SIZE, generator=torch.Generator().manual_seed(site))
        early = site == 2 or not late  # site 2 sends its delta in any case
        total.add(site, server - params if early else params, (site + 1) / 21, None if early else collectives.state[0])
    for part, delta in collectives.weighted_mean(total):
        collectives.state[0][part] -= delta
    state = collectives.state[0].numpy().copy()
    collectives.close()
    return state


@pytest.mark.parametrize("places", [["cpu"] * 3, ["cpu:0", "cpu:1", "cpu:0"]])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("single_site", [True, False])
def test_deltas_that_the_reader_makes_have_the_same_mean_bit_by_bit(
    run_distributed: Any, places: list[str], exact: bool, single_site: bool
) -> None:
    how = {"exact": exact, "single_site": single_site}
    early, late = (run_distributed(subtract, 3, places, how, late) for late in (False, True))
    for state in (*early, *late):
        assert np.array_equal(state, early[0])
    server = torch.randn(SIZE, generator=torch.Generator().manual_seed(99)).double()
    sites = range(3) if single_site else range(6)
    params = [torch.randn(SIZE, generator=torch.Generator().manual_seed(site)).double() for site in sites]
    mean = sum((site + 1) / 21 * (server - params[site]) for site in sites)
    np.testing.assert_allclose(late[0], (server - mean).numpy(), rtol=1e-5, atol=1e-6)


def diverge(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, value: float, exact: bool, single_site: bool,
    of_params: bool, places: Sequence[str] = ("cpu",) * 3,
) -> str:  # fmt: skip
    collectives = Collectives(
        rank, places, SIZE, memory, f"file://{folder}/rendezvous", exact=exact, single_site=single_site
    )
    total = collectives.weighted_sum()
    delta = torch.ones(SIZE)
    if rank == 1:
        delta[7] = value
    collectives.state[0].fill_(0.5)
    collectives.barrier()
    total.add(rank + 4, *((0.5 - delta, 1 / 3, collectives.state[0]) if of_params else (delta, 1 / 3)))
    if not single_site:
        total.add(rank + 14, torch.ones(SIZE), 1 / 3)
    try:
        for part, mean in collectives.weighted_mean(total):
            collectives.state[0][part] -= mean  # before the divergence is known
    except JobFailed as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("of_params", [True, False])
@pytest.mark.parametrize("single_site", [True, False])
@pytest.mark.parametrize(
    ("value", "exact", "refused"),
    [
        (float("nan"), True, True), (float("nan"), False, True), (float("-inf"), True, True), (float("inf"), False, True),
        (-16384.0, True, True), (-16383.9, True, False), (1e6, False, False),
    ],
)  # fmt: skip
def test_a_diverged_delta_stops_every_worker_and_names_the_site(
    run_distributed: Any, value: float, exact: bool, refused: bool, single_site: bool, of_params: bool
) -> None:
    messages = run_distributed(diverge, 3, value, exact, single_site, of_params)
    assert len(set(messages)) == 1
    message = "the parameters of site 5 are no longer finite after local training"
    assert messages[0].startswith(message if refused else "no error")
    assert ("or moved by 16384 or more" in messages[0]) == (refused and exact)


def diverge_in_one_chunk(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str], kernel: bool
) -> str:
    """Only the delta itself is too large: a third of it, which is in the mean, isn't."""
    collectives_module.CHUNK = dict.fromkeys(collectives_module.CHUNK, 100)
    if not kernel:
        fused_sum.refusal = lambda device: "there is no compiler"  # type: ignore[assignment]
    return diverge(rank, num_workers, memory, folder, -16384.0, True, True, False, places)


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("places", [["cpu"] * 3, ["cpu:0", "cpu:1", "cpu:0"]])
def test_a_delta_that_is_too_large_in_the_first_of_several_chunks_is_noticed(
    run_distributed: Any, places: list[str], kernel: bool
) -> None:
    messages = run_distributed(diverge_in_one_chunk, 3, places, kernel)
    assert len(set(messages)) == 1
    assert messages[0].startswith(
        "the parameters of site 5 are no longer finite after local training, or moved by 16384"
    )


def test_waiting_is_announced_around_every_collective_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[bool] = []
    collectives = Collectives(0, ["cpu"], SIZE, SharedMemory(), f"file://{tmp_path}/rendezvous", 0, waits.append)
    assert waits == [True, False]
    collectives.barrier()
    assert collectives.all_gather_numbers(1.5, 2.0) == [[1.5, 2.0]]
    assert waits == [True, False] * 3
    with monkeypatch.context() as patched:
        patched.setattr(dist, "barrier", Mock(side_effect=RuntimeError("broken")))
        with pytest.raises(PeerLost, match="broken"):
            collectives.barrier()
    assert waits == [True, False] * 4, "a failed collective doesn't leave the worker waiting"
    collectives.close()


def test_a_row_of_a_worker_without_sites_is_left_out(tmp_path: Path) -> None:
    """Its row holds what was there before: the last round's sum, or NaN."""
    for exact in (True, False):
        collectives = Collectives(
            0, ["cpu"], SIZE, SharedMemory(), f"file://{tmp_path}/rendezvous {exact}", exact=exact, single_site=False
        )
        collectives.worker_row.fill_(2**50 if exact else float("nan"))
        means = [delta.clone() for _, delta in collectives.weighted_mean(collectives.weighted_sum())]
        assert torch.equal(torch.cat(means), torch.zeros(SIZE))
        collectives.close()


def receive(rank: int, num_workers: int, memory: SharedMemory, folder: Path, places: list[str]) -> np.ndarray:
    collectives = Collectives(rank, places, SIZE, memory, f"file://{folder}/rendezvous", num_moments=2)
    if rank == 0:
        collectives.state.copy_(torch.arange(3.0 * SIZE).view(3, SIZE))
    collectives.broadcast_state()
    state = collectives.state.numpy().copy()
    collectives.close()
    return state


def test_every_memory_domain_receives_the_parameters_and_moments_of_worker_0(run_distributed: Any) -> None:
    for state in run_distributed(receive, 3, ["cpu:0", "cpu:1", "cpu:1"]):
        assert np.array_equal(state, np.arange(3 * SIZE).reshape(3, SIZE))
