"""The final model's folder: published file by file, and complete when its last file is there."""

from scaling_fl.checkpoint.store import Checkpoints

COMPLETE = "scaling_fl.json"  # the file of the final model's folder that is written last


def is_exported(checkpoints: Checkpoints, round_: int) -> bool:
    """Whether the final model is all there, and that of this round."""
    complete = checkpoints.read_json(f"model/{COMPLETE}")
    try:
        return complete["round"] == round_ and complete["files"].items() <= checkpoints.sizes("model").items()
    except (KeyError, TypeError, AttributeError):  # there is no such file, or it is damaged
        return False
