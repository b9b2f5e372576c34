"""SHA-256 digests of model, tokens and shards: they must match on all nodes of a job, and when a job is resumed."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl import state_file
from scaling_fl.models import adapters
from scaling_fl.models.loading import LoadedModel


def digest(*arrays: Any) -> str:
    """Return the SHA-256 of the arrays' bytes, one after another."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def pretrained(loaded: LoadedModel, initial: state_file.Arrays) -> str:
    """Return the digest of the pre-trained weights. New parameters are left out: they vary with seed and processor."""
    names = {name for name, _ in (*loaded.module.named_parameters(), *loaded.module.named_buffers())}
    new = names if loaded.new_parameters == ["all"] else set(loaded.new_parameters) | adapters.names(loaded.module)
    return digest(*(initial[name] for name in sorted(names & initial.keys() - new)))


def tokens(work: Path) -> str:
    """Return the digest of the token stores in the work folder, without the cache's `.json` manifest."""
    paths = [path for name in ("train", "test") for path in sorted((work / name).iterdir()) if path.suffix != ".json"]
    return digest(*(np.memmap(path, np.uint8, "r") for path in paths))


def node_digests(work: Path, data: str, tokens: str, initial: state_file.Arrays) -> dict[str, str]:
    """Return the digests of all that must be identical on the nodes of a job, by name."""
    files = (np.load(work / name) for name in ("shards.npy", "bounds.npy", "held_back.npy"))
    return {
        "data": data,
        "shards": digest(*files),
        "tokens": tokens,
        "models": digest(*(initial[name] for name in sorted(initial))),
    }
