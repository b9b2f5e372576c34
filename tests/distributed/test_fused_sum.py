"""Sums in fixed point by one kernel: the same bits as torch's operations. Triton's runs in its interpreter."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl import c_library
from scaling_fl.distributed import fused_sum, fused_sum_c, weighted_sum
from tests.distributed import compared_sums

REPOSITORY = Path(__file__).parents[2]
TRITON = (
    Path(sys.prefix) / "triton"
)  # apart: torch imports it where it is installed, which takes 80 MB and half a second
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What a test finds out isn't kept."""
    yield
    fused_sum.refusal.cache_clear()
    fused_sum_c.library.cache_clear()


def test_tritons_kernel_sums_to_the_same_bits_as_torch() -> None:
    if not TRITON.is_dir():
        pytest.skip(f"needs Triton: pip install --no-deps --target {TRITON} triton==3.7.1")
    script = [sys.executable, "-m", "tests.distributed.compared_sums", "fused_sum_triton", "cpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(TRITON)}
    done = subprocess.run(script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_c_function_sums_to_the_same_bits_as_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert fused_sum.refusal(CPU) == ""
    compared_sums.main("fused_sum_c", "cpu")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("dimension", [0, 1])
def test_sums_of_values_that_do_not_lie_side_by_side(dimension: int) -> None:
    """The kernels take contiguous memory."""
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    total = torch.zeros(50, 4, dtype=torch.int64)
    places = (rows[:, 0], total[:, 0]) if dimension == 0 else (rows[0], total[0])
    largest = weighted_sum.accumulate(places[1], places[0], 0.5, first=False)
    assert largest == places[0].abs().max()
    assert torch.equal(places[1], places[0].mul(0.5 * 2.0**48).long())
    assert total.count_nonzero() == len(places[0])


@pytest.mark.parametrize("compiler", ["none", "fails", "hangs"])
def test_without_a_working_compiler_sums_take_torchs_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    source = tmp_path / "fixed_sum.c"
    shutil.copy(fused_sum_c._SOURCE, source)
    monkeypatch.setattr(fused_sum_c, "_SOURCE", source)
    monkeypatch.setattr(c_library, "_TIMEOUT", 0.5)
    monkeypatch.setenv("PATH", str(tmp_path))
    if compiler != "none":
        (tmp_path / "cc").write_text(f"#!/bin/sh\nexec {'/bin/false' if compiler == 'fails' else '/bin/sleep 60'}\n")
        (tmp_path / "cc").chmod(0o755)
    expected = {"none": "FileNotFoundError", "fails": "CalledProcessError", "hangs": "TimeoutExpired"}[compiler]
    assert fused_sum.refusal(CPU).startswith(expected)
    assert sorted(path.name for path in tmp_path.rglob("*.so")) == []
    total, row = torch.ones(3, dtype=torch.int64), torch.tensor([0.5, -2.0, 0.25])
    assert weighted_sum.accumulate(total, row, 1.0, first=False) == 2.0
    assert total.tolist() == [1 + 2**47, 1 - 2**49, 1 + 2**46]


def test_a_source_that_has_changed_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update: nothing of the old version may be in use."""
    source, text = tmp_path / "fixed_sum.c", fused_sum_c._SOURCE.read_text()
    assert "0x1p-48f" in text
    monkeypatch.setattr(fused_sum_c, "_SOURCE", source)
    for version, expected in ((text, 3.0), (text.replace("0x1p-48f", "0x1p-47f"), 6.0)):
        source.write_text(version)
        fused_sum_c.library.cache_clear()
        mean = torch.zeros(2)
        fused_sum_c.mean_fixed(mean, [torch.full((2,), 3.0)], [2.0**48], [None])
        assert mean.tolist() == [expected] * 2


def test_processes_that_compile_at_the_same_time_do_not_disturb_each_other(tmp_path: Path) -> None:
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }")
    code = "import pathlib, sys; from scaling_fl.c_library import compiled; print(compiled(pathlib.Path(sys.argv[1])).one())"
    script = [sys.executable, "-c", code, str(source)]
    processes = [
        subprocess.Popen(script, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(3)
    ]
    assert [process.communicate()[0] for process in processes] == ["1\n"] * 3
    assert len(list(tmp_path.rglob("*.so"))) == 1


@pytest.mark.parametrize("wrong", ["sum", "largest", "mean", "largest of the mean"])
def test_a_kernel_whose_sums_differ_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    def add_fixed(total: torch.Tensor, row: torch.Tensor, scale: float, first: bool) -> torch.Tensor:
        largest = fused_sum_c.add_fixed(total, row, scale, first)
        total[-1] += int(wrong == "sum")
        return largest + int(wrong == "largest")

    def mean_fixed(mean: torch.Tensor, *given: Any) -> torch.Tensor:
        largest = fused_sum_c.mean_fixed(mean, *given)
        mean[-1] += int(wrong == "mean")
        return largest + int(wrong == "largest of the mean")

    monkeypatch.setattr(fused_sum, "add_fixed", add_fixed)
    monkeypatch.setattr(fused_sum, "mean_fixed", mean_fixed)
    assert fused_sum.refusal(CPU) == "its sums differ from torch's"


@pytest.mark.parametrize("size", [1, 15, 2047, 2048, 2049, 6000])
@pytest.mark.parametrize("with_server", ["", "1", "01", "00", "11", "10", "0111011", "1000100"])
def test_the_mean_in_one_pass_is_that_of_one_sum_after_the_other(size: int, with_server: str) -> None:
    """Neighbours that both have a server, or both have none, are added in pairs."""
    count = max(1, len(with_server))
    rows = [compared_sums.rows(size + seed)[0][:size].clone() for seed in range(count)]
    weights = [(number + 1) / (count * (count + 1) / 2) for number in range(count)]
    scales = [weight * weighted_sum.FIXED_POINT_SCALE for weight in weights]
    server = compared_sums.rows(size)[1][:size].clone()
    servers = [server if number == "1" else None for number in with_server.ljust(count, "0")]
    deltas = [row if of is None else of - row for row, of in zip(rows, servers, strict=True)]
    total = sum(delta.mul(scale).long() for delta, scale in zip(deltas, scales, strict=True))
    mean = torch.full((size + 1,), 7.0)
    largest = fused_sum.mean_fixed(mean[:size], rows, scales, servers)
    assert torch.equal(largest, torch.stack(deltas).abs().amax(1))
    assert torch.equal(mean[:size], weighted_sum.to_float(total))
    assert mean[size] == 7.0
    for bad in range(count):
        value, rows[bad][size // 2] = rows[bad][size // 2].item(), float("nan")
        found = fused_sum.mean_fixed(mean[:size], rows, scales, servers)
        assert found.isnan().tolist() == [number == bad for number in range(count)]
        assert torch.equal(found[~found.isnan()], largest[~found.isnan()])
        rows[bad][size // 2] = value


def test_without_triton_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(fused_sum, "add_fixed", fused_sum.fused_sum_triton.add_fixed)
    assert fused_sum.refusal(CPU).startswith(("ModuleNotFoundError: ", "ImportError: "))
