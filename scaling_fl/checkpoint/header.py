"""The header of a checkpoint: what it says of the job, and whether this program wrote it."""

import dataclasses
import time
from typing import Any

from scaling_fl.errors import UserError
from scaling_fl.federated.best_round import BestRound
from scaling_fl.federated.run_plan import Plan


def checkpoint_header(
    plan: Plan,
    results: dict[str, float | str],
    best: BestRound | None,
    reported: bool = True,
    history: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says of itself, beside its round. `reported`: whether `results` are all that there will be.

    `history`: those of the rounds before, by round.
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
        "history": history or {},
        "best": None if best is None else dataclasses.asdict(best),
        "environment": plan.environment,
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


# What a resume reads of a checkpoint's header. Its checksum tells damage, but not who wrote it.
_HEADER_TYPES = {
    "job_name": str, "round": int, "threads": int, "data_digest": str, "environment": dict, "config": dict,
    "metrics": dict, "history": dict, "reported": bool,
}  # fmt: skip


_CONFIG_TYPES = {"site_ids": list, "num_rounds": int}


_ORIGIN_TYPES = {"weights": str, "architecture": dict, "tokens": str}


_BEST_TYPES = {"metric": str, "round": int, "value": float}


def check_header(source: str, header: dict[str, Any]) -> None:
    wrong = [key for key, kind in _HEADER_TYPES.items() if type(header.get(key)) is not kind]
    if "history" not in wrong and not all(
        round_.isdecimal() and type(metrics) is dict for round_, metrics in header["history"].items()
    ):
        wrong.append("history")
    if "config" not in wrong:
        wrong += [key for key, kind in _CONFIG_TYPES.items() if type(header["config"].get(key)) is not kind]
    best = header.get("best")
    if best is not None and (
        type(best) is not dict or {key: type(value) for key, value in best.items()} != _BEST_TYPES
    ):
        wrong.append("best")
    origin = header.get("origin")
    if origin is not None and (
        type(origin) is not dict or {key: type(value) for key, value in origin.items()} != _ORIGIN_TYPES
    ):
        wrong.append("origin")
    if wrong or header["threads"] < 1:
        raise UserError(
            f"{source}: the header of this checkpoint is none that this program writes: {', '.join(wrong or ['threads'])} "
            "is missing or of the wrong kind; restore the checkpoint, or choose another folder"
        )
