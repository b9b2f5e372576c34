from unittest import mock

import pytest
import torch

from scaling_fl.distributed import fused_sum
from scaling_fl.distributed.weighted_sum import CHUNK, WeightedSum, accumulate, divergence_error, max_abs, to_float


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_the_delta_buffer_can_be_reused_after_adding(dtype: torch.dtype) -> None:
    size = 2**18 + 3  # more than one chunk
    row, buffer = torch.full((size,), 99, dtype=dtype), torch.ones(size)
    total = WeightedSum(row, single_site=False)
    assert total.scale == 0.0
    total.add(4, buffer, 0.25)
    buffer.fill_(-10.0)  # the next site trains in it
    total.add(7, buffer, 0.75)
    assert (to_float(row) * total.scale == 0.25 - 7.5).all()
    assert total.sites == [4, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_parameters_are_subtracted_from_the_servers_chunk_by_chunk(dtype: torch.dtype) -> None:
    """The values of both repeat at other places than chunks begin."""
    numbers = torch.arange(2**18 + 3)  # more than one chunk
    server, first, second = numbers % 1000 + 1.0, numbers % 7 - 0.5, numbers % 11 + 2.0
    total = WeightedSum(torch.full(server.shape, 99, dtype=dtype), single_site=False)
    total.add(4, first, 0.25, server)
    total.add(7, second, 0.5, server)
    assert torch.equal(to_float(total.buffer), 0.25 * (server - first) + 0.5 * (server - second))
    assert total.largest_delta == {4: (server - first).abs().max(), 7: (server - second).abs().max()}


def test_a_single_sites_delta_stays_unscaled_in_the_buffer() -> None:
    row = torch.ones(3)
    total = WeightedSum(row, single_site=True)
    total.add(4, row, 0.25)
    assert row.tolist() == [1.0] * 3
    assert total.scale == 0.25
    total = WeightedSum(row, single_site=True)
    total.add(4, torch.full((3,), 5.0), 0.5)
    assert row.tolist() == [5.0] * 3


def test_fixed_point_sums_are_order_independent_and_float_sums_are_not() -> None:
    addends = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-8, 3, 64)[:, None]
    addends[5] = 16383.0
    results = {}
    for dtype in (torch.int64, torch.float32):
        for order in (range(64), reversed(range(64))):
            total = torch.empty(1000, dtype=dtype)
            for number, addend in enumerate(order):
                accumulate(total, addends[addend], 1 / 64, first=number == 0)
            results.setdefault(dtype, []).append(to_float(total))
    assert torch.equal(*results[torch.int64])
    assert not torch.equal(*results[torch.float32])
    expected = addends.double().mean(0).float()
    torch.testing.assert_close(results[torch.int64][0], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_numpy_and_torch_add_integers_to_the_same_bits(num_threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        addends = torch.randn(3, 2**16 + 5, generator=torch.Generator().manual_seed(2)) * 100
        total = torch.empty(addends.shape[1], dtype=torch.int64)
        for number, addend in enumerate(addends):
            accumulate(total, addend, 1 / 3, first=number == 0)
        expected = (addends * (2.0**48 / 3)).long().sum(0)  # converted to fixed point first, then added
        assert torch.equal(total, expected)
        accumulate(total, expected, 1.0, first=False)
        assert torch.equal(total, 2 * expected)
    finally:
        torch.set_num_threads(before)


def test_sums_of_the_largest_deltas_do_not_overflow() -> None:
    just_below = torch.full((8,), torch.finfo(torch.float32).eps * -8192 + 16384)
    total = torch.empty(8, dtype=torch.int64)
    for number in range(1000):
        accumulate(total, just_below, 1 / 1000, first=number == 0)
    torch.testing.assert_close(to_float(total), just_below, rtol=1e-6, atol=0)
    accumulate(total, just_below, 1.0, first=True)
    assert torch.equal(to_float(total), just_below)


def test_max_abs_covers_both_signs_and_propagates_nan() -> None:
    assert max_abs(torch.tensor([1.0, -3.0, 2.0])).item() == 3.0
    assert max_abs(torch.tensor([1.0, float("nan"), 2.0])).isnan()
    assert max_abs(torch.tensor([1.0, float("-inf"), 2.0])).item() == float("inf")


@pytest.mark.parametrize(
    ("sites", "limit", "said"),
    [
        ([4], float("inf"), "the parameters of site 4 are no longer finite after local training; lower learning_rate"),
        (
            [0, 7],
            2.0**14,
            "of sites 0 and 7 are no longer finite after local training, or moved by 16384 or more; lower",
        ),
        (
            [1, 2, 30],
            float("inf"),
            "the parameters of sites 1, 2 and 30 are no longer finite after local training; lower",
        ),
    ],
)
def test_the_sites_that_diverged_are_listed(sites: list[int], limit: float, said: str) -> None:
    assert said in str(divergence_error(sites, limit))


def test_a_kernel_takes_a_whole_row_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call from Python for each small piece takes as long as the piece."""
    kernel = mock.Mock(wraps=fused_sum.add_fixed)
    monkeypatch.setattr(fused_sum, "add_fixed", kernel)
    fused_sum.refusal(torch.device("cpu"))  # its trial calls the kernel
    kernel.reset_mock()
    rows = torch.linspace(-1, 1, 2 * CHUNK["cpu"] + 5).repeat(2, 1)
    rows[1, 7] = -3.0
    total = WeightedSum(torch.empty(rows.shape[1], dtype=torch.int64), False)
    for site, row in enumerate(rows):
        total.add(site, row, 0.25)
    assert kernel.call_count == 2
    assert total.largest_delta == {0: 1.0, 1: 3.0}
    assert torch.equal(total.buffer, (rows * 0.25 * 2.0**48).long().sum(0))
