"""Whether a model's weights fit into memory."""

from typing import Any

import torch

from scaling_fl import host
from scaling_fl.errors import UserError


def check(model: str, auto_class: Any, config: Any) -> None:
    """Raise `UserError` if the weights don't fit into memory, rather than leave it to the out-of-memory killer."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto_class.from_config(config).parameters())
    needed, free = 4 * count, host.free_memory()
    if needed > free:
        raise UserError(
            f"model={model}: its {count / 1e9:.2f} B parameters take {needed / 2**30:.1f} GiB in float32, and "
            f"{free / 2**30:.1f} GiB of memory are free; use a smaller model, or a machine with more memory"
        )
