"""Sums in fixed point by one kernel: the same bits as torch's operations, in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scaling_fl.distributed import fused_sum, weighted_sum

REPOSITORY = Path(__file__).parents[2]
TRITON = (
    Path(sys.prefix) / "triton"
)  # apart: torch imports it where it is installed, which takes 80 MB and half a second


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What a test finds out isn't kept."""
    yield
    fused_sum.kernel.cache_clear()
    fused_sum.refusal.cache_clear()


def test_the_kernel_sums_to_the_same_bits_as_torch() -> None:
    if not TRITON.is_dir():
        pytest.skip(f"needs Triton: pip install --no-deps --target {TRITON} triton==3.7.1")
    script = [sys.executable, "-m", "tests.distributed.compared_sums", "cpu"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(TRITON)}
    done = subprocess.run(script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_without_triton_sums_take_torchs_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert fused_sum.refusal(torch.device("cpu")).startswith(("ModuleNotFoundError: ", "ImportError: "))


def test_a_kernel_whose_sums_differ_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(total: torch.Tensor, addend: torch.Tensor, scale: float, first: bool) -> torch.Tensor:
        largest = weighted_sum._add_fixed(total, addend, scale, first)
        total[-1] += 1
        return largest

    monkeypatch.setattr(fused_sum, "add_fixed", wrong)
    assert fused_sum.refusal(torch.device("cpu")) == "its sums differ from torch's"
    fused_sum.refusal.cache_clear()
    monkeypatch.setattr(fused_sum, "add_fixed", weighted_sum._add_fixed)
    assert fused_sum.refusal(torch.device("cpu")) == ""
