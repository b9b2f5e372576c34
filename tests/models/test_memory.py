"""Whether a model fits into memory, and what is said in gigabytes if it doesn't."""

from types import SimpleNamespace

import pytest
import torch

from scaling_fl import host
from scaling_fl.errors import UserError
from scaling_fl.models import memory


def test_needed_and_free_memory_are_said_in_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 billion parameters take 12e9 bytes: 11.18 GiB. None of them is made."""
    auto_class = SimpleNamespace(from_config=lambda config: torch.nn.Linear(50_000, 60_000, bias=False))
    monkeypatch.setattr(host, "free_memory", lambda: 12e9)
    memory.check_model("m", auto_class, None)
    monkeypatch.setattr(host, "free_memory", lambda: 5.5 * 2**30)
    with pytest.raises(UserError) as refusal:
        memory.check_model("m", auto_class, None)
    assert str(refusal.value) == (
        "model=m: its 3.00 B parameters take 11.2 GiB in float32, and 5.5 GiB of memory are free; use a smaller model, or a "
        "machine with more memory"
    )
