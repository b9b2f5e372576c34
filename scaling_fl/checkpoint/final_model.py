"""The folder of the final model: published file by file, and complete once its last file exists."""

from scaling_fl.checkpoint.store import CheckpointStore

COMPLETE = "scaling_fl.json"  # published last


def is_exported(checkpoints: CheckpointStore, round_: int) -> bool:
    """Whether the folder holds the complete model of this round."""
    complete = checkpoints.read_json(f"model/{COMPLETE}")
    try:
        return complete["round"] == round_ and complete["files"].items() <= checkpoints.sizes("model").items()
    except (KeyError, TypeError, AttributeError):  # the file is missing or damaged
        return False
