"""Hugging Face folders of the model: published file by file, and complete once their last file exists."""

import json
import tempfile
from pathlib import Path
from typing import Any

from scaling_fl.checkpoint.storage import OnProgress, Storage, no_progress
from scaling_fl.config.schema import Config
from scaling_fl.federated.best_round import BestRound

COMPLETE = "scaling_fl.json"  # published last


_NAMES = {"last": ("model",), "best": ("model-best",), "both": ("model", "model-best")}  # by the key `export`


def folders(config: Config, round_: int, best: BestRound | None) -> dict[str, int]:
    """The folders that a finished job has, and the round of each: `model` of the last round, `model-best` of the best."""
    if not config.has_global_model:
        return {}
    rounds = {"model": round_} | ({} if best is None else {"model-best": best.round})
    return {name: rounds[name] for name in _NAMES[config.export] if name in rounds}


def complete_folders(config: Config, checkpoints: Storage) -> list[str]:
    """The folders that a job, which has ended, has written."""
    return [name for name in _NAMES[config.export] if checkpoints.read_json(f"{name}/{COMPLETE}")]


def is_exported(checkpoints: Storage, name: str, round_: int) -> bool:
    """Whether the folder `name` holds the complete model of this round."""
    complete = checkpoints.read_json(f"{name}/{COMPLETE}")
    try:
        return complete["round"] == round_ and complete["files"].items() <= checkpoints.sizes(name).items()
    except (KeyError, TypeError, AttributeError):  # the file is missing or damaged
        return False


def publish(
    checkpoints: Storage,
    name: str,
    round_: int,
    module: Any,
    prepared: Path,
    card: str,
    merge: bool,
    dtype: str,
    on_progress: OnProgress = no_progress,
) -> str:
    """Write the folder `name` of `module`, its model `card`, and the tokenizer in `prepared`; return its full name.

    `merge` and `dtype`: of adapters, see `write_folder`.
    """
    with tempfile.TemporaryDirectory() as staging:
        from scaling_fl.models import export  # imports torch, and the launcher, which imports this module, needs none

        export.write_folder(module, prepared, Path(staging), merge, dtype)
        (Path(staging) / "README.md").write_text(card)
        files = {path.name: path.stat().st_size for path in Path(staging).iterdir() if path.is_file()}
        (Path(staging) / COMPLETE).write_text(json.dumps({"round": round_, "files": files}))
        return checkpoints.publish_folder(Path(staging), name, COMPLETE, on_progress)
