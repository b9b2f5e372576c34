"""SHA-256 of what model, tokenizer and data amount to: it must be alike on all nodes of a job, and when it is resumed."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl import state_file
from scaling_fl.models.loading import Loaded


def digest(*arrays: Any) -> str:
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return whole.hexdigest()


def pretrained(loaded: Loaded, initial: state_file.Arrays) -> str:
    """Of the weights in the model's files. What is drawn anew follows from the seed, and varies with the processor."""
    names = {name for name, _ in (*loaded.module.named_parameters(), *loaded.module.named_buffers())}
    new = names if loaded.new_parameters == ["all"] else set(loaded.new_parameters)
    return digest(*(initial[name] for name in sorted(names & initial.keys() - new)))


def tokens(work: Path) -> str:
    """Of the token stores in the work folder: what the tokenizer makes of the texts. The cache's seal is none of it."""
    paths = [path for name in ("train", "test") for path in sorted((work / name).iterdir()) if path.suffix != ".json"]
    return digest(*(np.memmap(path, np.uint8, "r") for path in paths))


def node_digests(work: Path, data: str, tokens: str, initial: state_file.Arrays) -> dict[str, str]:
    """All that the nodes of a job must have alike, by what they are."""
    files = (np.load(work / name) for name in ("shards.npy", "bounds.npy", "held_back.npy"))
    return {
        "data": data,
        "shards": digest(*files),
        "tokens": tokens,
        "models": digest(*(initial[name] for name in sorted(initial))),
    }
