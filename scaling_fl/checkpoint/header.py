"""The header of a checkpoint: what it records about the job, and the check that a resumed job can read it."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from scaling_fl.errors import UserError
from scaling_fl.federated import cohort
from scaling_fl.federated.best_round import BestRound
from scaling_fl.federated.run_plan import Plan

# The fields that a resumed job reads. The checksum detects damage, but an intact file may come from another program.
_HEADER_TYPES = {
    "job_name": str, "round": int, "threads": int, "data_digest": str, "environment": dict, "config": dict,
    "metrics": dict, "history": dict, "reported": bool,
}  # fmt: skip
_CONFIG_TYPES = {"site_ids": list, "num_rounds": int}
_ORIGIN_TYPES = {"weights": str, "architecture": dict, "tokens": str, "padding": list}
_BEST_TYPES = {"metric": str, "round": int, "value": float}


def checkpoint_header(
    plan: Plan,
    results: dict[str, float | str],
    best: BestRound | None,
    reported: bool = True,
    history: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Build the header of a checkpoint; `CheckpointStore.save` adds the round.

    `reported`: whether `results` are final. If not, the resumed job evaluates the round first.
    `history`: the results of recent rounds, by round; see `history.py`.
    """
    return {
        "job_name": plan.config.job_name,
        "config": plan.config.to_mapping(),
        "threads": plan.threads,
        "data_digest": plan.data_digest,
        "origin": plan.origin,
        "label_names": list(plan.label_names),
        "metrics": results,
        "reported": reported,
        "history": dict(history or {}),
        "best": None if best is None else dataclasses.asdict(best),
        "environment": plan.environment,
        "cohort_rules": cohort.RULES,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def check_header(source: str, header: dict[str, Any]) -> None:
    """Raises `UserError` if a field that a resumed job reads is missing or has the wrong type."""
    wrong = [key for key, kind in _HEADER_TYPES.items() if type(header.get(key)) is not kind]
    if "history" not in wrong and not all(
        round_.isdecimal() and type(metrics) is dict for round_, metrics in header["history"].items()
    ):
        wrong.append("history")
    if "config" not in wrong:
        wrong += [key for key, kind in _CONFIG_TYPES.items() if type(header["config"].get(key)) is not kind]
    for key, types in (("best", _BEST_TYPES), ("origin", _ORIGIN_TYPES)):
        value = header.get(key)
        if key == "origin" and type(value) is dict:
            value = {"padding": []} | value  # 0.1.0 padded all models alike
        if value is not None and (type(value) is not dict or {name: type(v) for name, v in value.items()} != types):
            wrong.append(key)
    if wrong or header["threads"] < 1:
        raise UserError(
            f"{source}: the header of this checkpoint is invalid: {', '.join(wrong or ['threads'])} is missing or of the "
            "wrong type; restore the checkpoint, or choose another folder"
        )
