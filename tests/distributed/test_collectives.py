from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from scaling_fl.distributed import collectives as collectives_module
from scaling_fl.distributed import cuda_ipc
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import JobFailed, PeerLost

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
    collectives.barrier()
    collectives.close()
    return {
        "state": state, "pieces": pieces, "calls": calls, "gathered": gathered,
        "note": collectives.transport_note, "on gpu": collectives.worker_row.is_cuda,
    }  # fmt: skip


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
    everyone = [d for rank in range(3) for d in deltas(rank)]
    expected = sum(delta.double() * examples / 40 for _, delta, examples in everyone)
    for result in results:
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])
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
    collectives.barrier()
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


def diverge(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, value: float, exact: bool, single_site: bool
) -> str:
    collectives = Collectives(
        rank, ["cpu"] * num_workers, SIZE, memory, f"file://{folder}/rendezvous", exact=exact, single_site=single_site
    )
    total = collectives.weighted_sum()
    delta = torch.ones(SIZE)
    if rank == 1:
        delta[7] = value
    total.add(rank + 4, delta, 1 / 3)
    if not single_site:
        total.add(rank + 14, torch.ones(SIZE), 1 / 3)
    try:
        list(collectives.weighted_mean(total))
    except JobFailed as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("single_site", [True, False])
@pytest.mark.parametrize(
    ("value", "exact", "refused"),
    [
        (float("nan"), True, True), (float("nan"), False, True), (float("-inf"), True, True), (float("inf"), False, True),
        (-16384.0, True, True), (-16383.9, True, False), (1e6, False, False),
    ],
)  # fmt: skip
def test_a_diverged_delta_stops_every_worker_and_names_the_site(
    run_distributed: Any, value: float, exact: bool, refused: bool, single_site: bool
) -> None:
    messages = run_distributed(diverge, 3, value, exact, single_site)
    assert len(set(messages)) == 1
    message = "the parameters of site 5 are no longer finite after local training"
    assert messages[0].startswith(message if refused else "no error")
    assert ("or moved by 16384 or more" in messages[0]) == (refused and exact)


def aggregate_like_gpus(
    rank: int, num_workers: int, memory: SharedMemory, folder: Path, devices: list[str], refuse: list[int]
) -> dict[str, Any]:
    """Like `aggregate`, with files in place of GPU memory; CUDA IPC is refused to the ranks in `refuse`."""

    def file(handle: bytes, shape: tuple[int, int]) -> torch.Tensor:
        return torch.from_file(handle.decode(), shared=True, size=shape[0] * shape[1]).view(shape)

    def allocate(shape: tuple[int, int], device: torch.device) -> tuple[torch.Tensor, bytes]:
        if rank in refuse:
            raise cuda_ipc.NotPermitted("operation not supported")
        handle = f"{folder}/gpu{device.index}".encode()
        return file(handle, shape), handle

    def attach(handle: bytes, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
        if rank in refuse:
            raise cuda_ipc.NotPermitted("invalid device context")
        return file(handle, shape)

    pinned: list[torch.Tensor] = []
    finished: list[torch.device] = []
    order: list[str] = []  # of exchanges with other workers and of synchronisations with the GPU

    def pin(memory: torch.Tensor, device: torch.device) -> bool:
        pinned.append(memory)
        return rank != 1

    released: list[bool] = []
    cuda_ipc.allocate, cuda_ipc.attach, cuda_ipc.pin = allocate, attach, pin
    cuda_ipc.release = lambda memory, allocated: released.append(allocated)
    torch.cuda.synchronize = lambda device: (finished.append(device), order.append("finish"))
    exchange, mean = Collectives.all_gather_numbers, Collectives.weighted_mean

    def noted(self: Collectives, *values: float) -> list[list[float]]:
        order.append("exchange")
        return exchange(self, *values)

    def alone(self: Collectives, total: Any) -> Any:
        order.clear()
        yield from mean(self, total)
        order.append("end")

    Collectives.all_gather_numbers, Collectives.weighted_mean = noted, alone  # type: ignore[method-assign]
    result = aggregate(rank, num_workers, memory, folder, devices)
    return result | {
        "pinned": len(pinned), "released": released, "finished": {str(device) for device in finished}, "order": order[: order.index("end")],
    }  # fmt: skip


@pytest.mark.parametrize("devices", [["cuda:0"] * 3, ["cuda:1", "cuda:0", "cuda:1"]])
@pytest.mark.parametrize("refuse", [[], [0], [2], [0, 1, 2]])
def test_workers_on_a_gpu_share_its_memory_or_all_use_host_memory(
    run_distributed: Any, tmp_path: Path, devices: list[str], refuse: list[int]
) -> None:
    results = run_distributed(aggregate_like_gpus, 3, devices, refuse)
    expected = sum(delta.double() * examples / 40 for rank in range(3) for _, delta, examples in deltas(rank))
    for rank, result in enumerate(results):
        np.testing.assert_allclose(result["state"], expected.numpy(), rtol=1e-5, atol=1e-6)
        assert np.array_equal(result["state"], results[0]["state"])
        assert result["finished"] == {devices[rank]}
        # No row is read before its GPU has written it; no worker continues before all rows have been read.
        assert [before for before, what in pairwise(result["order"]) if what == "exchange"] == ["finish", "finish"]
        assert result["pinned"] == bool(refuse)
        if refuse:
            assert result["note"].startswith("CUDA IPC isn't permitted here (")
            assert result["note"].endswith(
                "host memory, which can't be pinned either" if rank == 1 else "memory, pinned"
            )
            leader = devices.index(devices[rank])
            has_memory = rank not in refuse and leader not in refuse
            assert result["released"] == [rank == leader] * has_memory
        else:
            assert (result["note"], result["released"]) == ("", [])
    # A barrier before and after the leaders' all-reduce, which several domains need.
    several = len(set(devices)) > 1 and not refuse
    assert [result["calls"]["barrier"] for result in results] == [1 + 2 * several] * 3


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
