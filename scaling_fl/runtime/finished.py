"""Jobs that are done: what is said of them, at once as long as neither their settings nor their files have changed."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import scaling_fl
from scaling_fl.checkpoint import final_model
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.data.readers.paths import expand
from scaling_fl.errors import UserError
from scaling_fl.tracking import events

Files = dict[str, list[int]]  # by path, size and time of change


def rounds_done(number: int) -> str:
    return "1 round is done" if number == 1 else f"{number} rounds are done"


def sentence(config: Config, round_: int, models: Sequence[str]) -> str:
    """What is said of a job that has nothing left to do after this round, and has written the folders `models`."""
    folder = CheckpointStore(config.checkpoints_dir).url if config.checkpoints_dir else "node 0's checkpoints_dir"
    places = " and ".join(f"{folder}/{name}" for name in models)
    where = f"the model is in {places}" if models else f"checkpoints are in {folder}"
    return (
        f"job {config.job_name} is finished: {rounds_done(round_)}, and {where}; for more rounds, set num_rounds above "
        f"{round_}"
    )


def inputs(config: Config) -> Files | None:
    """The files that the job reads; None if some aren't on this machine, or not there. A model on the hub is no file."""
    found: Files = {}
    try:
        for key in ("train_path", "test_path", "dataset", "model"):
            value = getattr(config, key)
            folder = os.path.expanduser(value or "")
            if value is None or (key == "model" and not os.path.isdir(folder)):
                continue
            if "://" in value or (key == "dataset" and not os.path.isdir(folder)):
                return None
            for path in expand(value, key) if key.endswith("_path") else [folder]:
                found |= _stat(Path(path).expanduser())
    except (OSError, UserError):
        return None
    return found


def remember(history: Path, config: Config, read: Files | None, round_: int) -> None:
    """Keep the sentence beside the event file, if it depends on files of this machine alone.

    `read`: the `inputs` from before the job read them. Without the sentence, the next command only takes longer.
    """
    with contextlib.suppress(OSError, UserError):
        if read is None or (written := _written(config)) is None:
            return
        models = final_model.complete_folders(config, CheckpointStore(str(config.checkpoints_dir)))
        kept = {
            "job": _job(config), "read": read, "written": written, "said": sentence(config, round_, models)
        }  # fmt: skip
        temporary = _place(history).with_suffix(".partial")
        temporary.write_text(json.dumps(kept))
        temporary.replace(_place(history))


def recall(history: Path, config: Config, read: Files | None) -> str | None:
    """What was said of the job, if it would be said again; None if that has to be found out."""
    try:
        kept = json.loads(_place(history).read_text())
        same = kept["job"] == _job(config) and kept["read"] == read and kept["written"] == _written(config)
        if not same:
            return None
        ends = [event["event"] for event in events.read(history)[0] if event["event"] in ("started", *events.ENDS)]
        return str(kept["said"]) if ends[-1:] == ["completed"] else None
    except (OSError, ValueError, TypeError, KeyError, UserError):
        return None


def _place(history: Path) -> Path:
    return history.with_suffix(".finished.json")


def _job(config: Config) -> Any:
    return {"version": scaling_fl.__version__, "config": json.loads(json.dumps(config.to_mapping()))}


def _written(config: Config) -> Files | None:
    """The checkpoints and models that the job has written; None if they aren't on this machine."""
    if config.checkpoints_dir is None or not (store := CheckpointStore(config.checkpoints_dir)).local:
        return None
    folder = Path(store.root)
    return {
        name: stat for path in (*folder.glob("round-*"), *folder.glob("model*")) for name, stat in _stat(path).items()
    }


def _stat(path: Path) -> Files:
    """Of a file, or of all files in a folder."""

    def files() -> Iterator[str]:
        for folder, _, names in os.walk(path, followlinks=True):
            yield from (os.path.join(folder, name) for name in names)

    return {
        name: [(found := os.stat(name)).st_size, found.st_mtime_ns]
        for name in sorted(files() if path.is_dir() else [str(path)])
    }
