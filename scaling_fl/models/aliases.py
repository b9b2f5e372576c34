"""Names of models: short ones, and those on the hub."""

import re
from pathlib import Path

ALIASES = {
    "albert": "albert-base-v1",
    "bert": "bert-base-cased",
    "distilbert": "distilbert-base-cased",
}
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def hub_id(model: str) -> str | None:
    """The model's id on the hub, or `None`: `tiny` and folders have none."""
    name = ALIASES.get(model, model)
    return name if model != "tiny" and _HUB_ID.fullmatch(name) is not None and not Path(name).exists() else None
