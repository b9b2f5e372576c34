"""Whether values fit into memory: refuse before they are made, rather than leave it to the out-of-memory killer."""

from typing import Any

import torch

from scaling_fl import host
from scaling_fl.errors import UserError


def check_model(model: str, auto_class: Any, config: Any) -> None:
    """Raise `UserError` if the model's weights don't fit into memory."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto_class.from_config(config).parameters())
    remedy = "use a smaller model, or a machine with more memory"
    check(f"model={model}: its {count / 1e9:.2f} B parameters take", 4 * count, remedy)


def check(what: str, needed: float, remedy: str) -> None:
    """Raise `UserError` if `needed` bytes of float32 values don't fit into memory; `what` names them, up to a verb."""
    if needed > (free := host.free_memory()):
        raise UserError(
            f"{what} {needed / 2**30:.1f} GiB in float32, and {free / 2**30:.1f} GiB of memory are free; {remedy}"
        )
