"""Jobs that are done: what is said of them, at once as long as neither their settings nor their files have changed."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scaling_fl
from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.data.readers.paths import expand
from scaling_fl.errors import UserError
from scaling_fl.tracking import events

_INPUTS = ("train_path", "test_path", "dataset", "model")
_EXPORTED = {"last": ("model",), "best": ("model-best",), "both": ("model", "model-best")}


def rounds_done(number: int) -> str:
    return "1 round is done" if number == 1 else f"{number} rounds are done"


def sentence(config: Config, round_: int) -> str:
    """What is said of a job that has nothing left to do after this round."""
    where = "checkpoints are in node 0's checkpoints_dir"
    if config.checkpoints_dir is not None:
        store = CheckpointStore(config.checkpoints_dir)
        names = [name for name in _EXPORTED[config.export] if store.read_json(f"{name}/{final_model.COMPLETE}")]
        models = " and ".join(f"{store.url}/{name}" for name in names)
        where = f"the model is in {models}" if models else f"checkpoints are in {store.url}"
    return (
        f"job {config.job_name} is finished: {rounds_done(round_)}, and {where}; for more rounds, set num_rounds above "
        f"{round_}"
    )


def remember(history: Path, config: Config, round_: int) -> None:
    """Keep the sentence beside the event file, with what it depends on. Without it, the next command takes longer."""
    with contextlib.suppress(OSError, UserError):
        if (state := _state(config)) is not None:
            temporary = _place(history).with_suffix(".partial")
            temporary.write_text(json.dumps({"state": state, "said": sentence(config, round_)}))
            temporary.replace(_place(history))


def recall(history: Path, config: Config) -> str | None:
    """What was said of the job, if it would be said again; None if that has to be found out."""
    try:
        kept = json.loads(_place(history).read_text())
        ends = [event["event"] for event in events.read(history)[0] if event["event"] in ("started", *events.ENDS)]
        same = ends[-1:] == ["completed"] and kept["state"] == _state(config)
        return str(kept["said"]) if same else None
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return None


def _place(history: Path) -> Path:
    return history.with_suffix(".finished.json")


def _state(config: Config) -> Any:
    """All that the sentence depends on, as JSON; None where that can't be told without reading the data."""
    if config.checkpoints_dir is None or not CheckpointStore(config.checkpoints_dir).local:
        return None
    inputs = list(_inputs(config))
    if None in inputs:
        return None
    folder = Path(config.checkpoints_dir).expanduser()
    files = [*map(Path, filter(None, inputs)), *folder.glob("round-*"), *folder.glob("model*")]
    stats = {name: stat for path in files for name, stat in _stat(path)}
    return {"version": scaling_fl.__version__, "config": json.loads(json.dumps(config.to_mapping())), "files": stats}


def _inputs(config: Config) -> Iterator[str | None]:
    """The files and folders that the job reads; None for what isn't on this machine, and may have changed.

    A model on the hub is no part of a finished job.
    """
    for key in _INPUTS:
        value = getattr(config, key)
        if value is None:
            continue
        if key in ("dataset", "model"):
            folder = os.path.expanduser(value)
            if os.path.isdir(folder) or key == "dataset":
                yield folder if os.path.isdir(folder) else None
        else:
            yield from (None if "://" in path else os.path.expanduser(path) for path in expand(value, key))


def _stat(path: Path) -> Iterator[tuple[str, list[int]]]:
    """Size and time of a file, or of each file in a folder."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if not file.is_dir():
            yield str(file), [(found := file.stat()).st_size, found.st_mtime_ns]
