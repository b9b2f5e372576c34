"""The size of a model's weights on this machine, without loading them."""

import os
from pathlib import Path

import huggingface_hub

from scaling_fl.models.aliases import ALIASES

_FILES = ("model.safetensors", "pytorch_model.bin")
_TINY = 4e6  # bytes


def weights_size(model: str) -> float | None:
    """Bytes of the weights of `model`, or `None` if they aren't on this machine yet."""
    if model == "tiny":
        return _TINY
    source = ALIASES.get(model, model)
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        sizes = [path.stat().st_size for path in folder.glob("*") if path.suffix in (".safetensors", ".bin")]
        return float(sum(sizes)) if sizes else None
    for name in _FILES:
        try:
            found = huggingface_hub.try_to_load_from_cache(source, name)
        except ValueError:  # not a hub id
            return None
        if isinstance(found, str):
            return float(os.path.getsize(found))
    return None
