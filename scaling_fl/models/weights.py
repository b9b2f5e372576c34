"""The size of a model's weights on this machine, without loading them."""

import os
from pathlib import Path

import huggingface_hub

from scaling_fl.models.aliases import ALIASES

_SUFFIXES = (".safetensors", ".bin")  # transformers loads the first kind where a folder has both
_TINY = 4e6  # bytes


def weights_size(model: str) -> float | None:
    """Bytes of the weights of `model`, or `None` if they aren't on this machine yet."""
    if model == "tiny":
        return _TINY
    source = ALIASES.get(model, model)
    folder = Path(os.path.expanduser(source))
    if not folder.is_dir():
        try:
            config = huggingface_hub.try_to_load_from_cache(source, "config.json")
        except ValueError:  # not a hub id
            return None
        if not isinstance(config, str):
            return None
        folder = Path(config).parent
    for suffix in _SUFFIXES:
        if sizes := [path.stat().st_size for path in folder.glob(f"*{suffix}")]:
            return float(sum(sizes))
    return None
