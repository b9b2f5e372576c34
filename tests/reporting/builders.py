"""Event files of finished jobs with unequal sites."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.data.examples import Predictions, Split
from scaling_fl.reporting import frames
from scaling_fl.reporting.frames import Frames
from scaling_fl.tracking import predictions_file
from scaling_fl.tracking.events import EventLog
from tests.tracking.builders import SACRED

SIZES = (5, 9, 4)
LABELS = ["sport", "art"]
GENERATIONS = [
    {"row": 1, "prompt": "<|user|>\nWhich?", "expected": "this", "generated": "that & </script><i>those</i>"},
    {"row": 2, "prompt": "<|user|>\nWho?", "expected": "nobody", "generated": ""},
]
LABEL_COUNTS = ((5, 0), (4, 5), (1, 3))


def job(
    folder: Path, name: str = "news", rounds: int = 2, loss: float | str = "nan", each: str = "loss", **keys: Any
) -> Path:
    """The event file of a job; metrics are functions of round and site, so that tests can derive them."""
    keys = {"batch_size": 4, "num_local_epochs": 2, "num_sites": 3} | keys
    config = Config(job_name=name, num_rounds=rounds, checkpoints_dir=None, **keys)
    log = EventLog(folder / f"{name}.jsonl")
    info = {
        "label_names": LABELS, "num_parameters": 1000, "resolved": {"num_sites": 3, "precision": "fp32"},
    }  # fmt: skip
    start = {"host": "h", "after_round": 0, "environment": {"torch": "2"}, "devices": ["cpu"]}
    log.append("started", sacred=SACRED, config=config.to_record(), start=start, info=info)
    table = zip(SIZES, LABEL_COUNTS, strict=True)
    shards = [
        {"site": site, "examples": size, "label_entropy_bits": site / 4, "label_counts": list(counts)}
        for site, (size, counts) in enumerate(table)
    ]
    log.append("shards", shards=shards)
    log.append("round", round=0, metrics={"validation.accuracy": 0.5, "validation.loss": 0.7, "seconds.evaluate": 0.25})
    for round_ in range(1, rounds + 1):
        metrics: dict[str, Any] = {f"site.{site}.train.{each}": _of_site(each, site, round_) for site in range(3)}
        metrics |= {"train.loss": 1 / round_, "validation.accuracy": 1 - 0.125 * round_, "validation.loss": loss}
        seconds = {"train": 2.0, "aggregate": 0.5, "evaluate": 0.25, "idle": 0.75}
        metrics |= {f"seconds.{phase}": value for phase, value in seconds.items()}
        log.append("round", round=round_, metrics=metrics)
    log.append("checkpoint", round=rounds, path="c/round-000002.safetensors", seconds=0.0625)
    log.append(
        "output",
        text="note: 3 of 30 texts are truncated to 16 tokens\nround 1\nnote: 3 of 30 texts are truncated to 16 tokens",
    )
    log.append("predictions", round=rounds, parquet=base64.b64encode(predictions(folder)).decode())
    log.append("generations", round=rounds, rows=GENERATIONS)
    log.append("confusion", round=rounds, sets={"validation": [[3, 1], [2, 7]]})
    log.append("completed")
    log.close()
    return log.path


def cell(
    folder: Path, name: str, accuracies: Sequence[float], resolved: Mapping[str, Any] | None = None,
    ending: str | None = "completed", others: Mapping[str, Sequence[float]] | None = None,
    shards: Sequence[Mapping[str, Any]] = (), **keys: Any,
) -> Path:  # fmt: skip
    """The event file of a job of a sweep: the test accuracy of rounds 0, 1, … and `others`, metrics of rounds 1, 2, …"""
    config = Config(**{"job_name": name, "num_rounds": max(1, len(accuracies) - 1)} | keys)
    resolved = {"num_sites": config.num_sites or len(config.site_ids)} | dict(resolved or {})
    start = {"host": "h", "after_round": 0, "environment": {}, "devices": ["cpu"]}
    log = EventLog(folder / f"{name}.jsonl")
    log.append("started", sacred=SACRED, config=config.to_record(), start=start, info={"resolved": resolved})
    if shards:
        log.append("shards", shards=list(shards))
    for round_, accuracy in enumerate(accuracies):
        more = {name: values[round_ - 1] for name, values in (others or {}).items() if round_}
        log.append("round", round=round_, metrics={"validation.accuracy": accuracy} | more)
    if ending is not None:
        log.append(ending)
    log.close()
    return log.path


def sweep(folder: Path, *cells: dict[str, Any]) -> Frames:
    """The frames of jobs: see `cell`. `end` is a final accuracy in place of the curve."""
    paths = []
    for number, keys in enumerate(cells):
        accuracies = keys.get("accuracies", [0.25, keys.get("end", 0.5)])
        rest = {key: value for key, value in keys.items() if key not in ("accuracies", "end")}
        paths.append(cell(folder, f"job{number}", accuracies, **rest))
    return frames.load(*paths)


def predictions(folder: Path) -> bytes:
    """Those that the confusion matrix counts: labels 4 × 0 and 9 × 1, of which 1 and 2 are predicted wrongly."""
    work = folder / "work"
    (work / "test").mkdir(parents=True, exist_ok=True)
    labels = np.array([0] * 4 + [1] * 9)
    np.save(work / "test" / "labels.npy", labels)
    predicted = np.array([0, 0, 0, 1, 0, 0, *[1] * 7])
    probabilities = np.array([0.75] * 3 + [0.625, 0.5625, 0.875] + [0.6875] * 7, np.float32)
    texts = [f"text {row}" for row in range(1, 14)]
    texts[3] = "</script><b>nobody</b> & 'quotes'"
    predictions_file.write_texts(work, Split(texts, labels))
    return predictions_file.content(work, LABELS, Predictions(np.arange(13), predicted, probabilities))


def _of_site(measure: str, site: int, round_: int) -> float:
    return site + round_ / 8 if measure == "loss" else (site + 1) / 8
