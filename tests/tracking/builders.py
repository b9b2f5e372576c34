"""Event files and plans of small jobs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking.events import EventLog

SACRED: dict[str, Any] = {
    "experiment": {"name": "scaling_fl", "base_dir": "/b", "dependencies": [], "mainfile": "m.py", "repositories": []},
    "command": "train",
    "host": {"hostname": "h"},
    "meta": {"comment": "c"},
}


def start(log: EventLog, after_round: int = 0, host: str = "h") -> None:
    """Append what a launcher appends when it starts."""
    start = {"host": host, "after_round": after_round, "environment": {"torch": "2"}, "devices": ["cpu"]}
    config = {"job_name": log.path.stem, "num_rounds": 4}
    log.append("started", sacred=SACRED, config=config, start=start, info={"label_names": ["a", "b"]})
    log.append("shards", shards=[{"site": 0, "examples": 5}, {"site": 1, "examples": 4}])


def round_(log: EventLog, number: int, loss: float | str) -> None:
    log.append("round", round=number, metrics={"train.loss": loss, f"only.in.{number}": 1.5})


def job(folder: Path, name: str = "news") -> EventLog:
    """A log in `folder` with one start and rounds 1 and 2."""
    log = EventLog(folder / f"{name}.jsonl")
    log.append("source", name="m.py", text="print()\n")
    start(log)
    log.append("output", text="hello")
    round_(log, 1, 0.5)
    log.append("checkpoint", round=1, path="c/round-000001.safetensors", seconds=0.25)
    round_(log, 2, 0.25)
    return log


def progress(
    worker: int, round_: int, done: int, site: int | None = None, site_done: int = 0, *trained: tuple[int, float, float]
) -> dict[str, Any]:
    """What a worker sends in a round: its steps, the site that it trains, and those that it has trained."""
    return {
        "event": "progress", "worker": worker, "round": round_, "done": done, "site": site, "site_done": site_done,
        "trained": list(trained),
    }  # fmt: skip


def plan(
    checkpoints_dir: str | None = None, round_: int = 2, keys: Mapping[str, Any] | None = None, **more: Any
) -> Plan:
    return Plan(
        config=Config(site_ids=(0, 0), job_name="news", checkpoints_dir=checkpoints_dir, **keys or {}),
        folder="/none", round=round_, finished=False, reported=round_ > 0, threads=1, devices=("cpu", "cpu"),
        architecture="Bert",
        num_parameters=9, new_parameters=("head",), label_names=("a", "b"), shard_sizes=(5, 4),
        shard_entropies=(1.0, 0.5), num_train=9, num_test=3, num_truncated=0, data_digest="d" * 64, pad_token_id=0,
        environment={"torch": "2"}, notes=(), **more,
    )  # fmt: skip
