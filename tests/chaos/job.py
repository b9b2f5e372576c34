"""A job with three sites, run with or without a fault; its final state and its record."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from scaling_fl.checkpoint import store
from tests import builders, zygote
from tests.chaos import faults
from tests.conftest import clean_environment

NUM_ROUNDS = 3


class Job(NamedTuple):
    """A command line, and the folder that it runs in."""

    words: list[str]
    folder: Path
    environ: dict[str, str]

    def start(self, fault: dict[str, Any] | None = None, *more: str, cold: bool = False) -> "subprocess.Popen[str]":
        environ = clean_environment() | self.environ
        environ["CHAOS"] = json.dumps(fault or {"place": "", "kind": "", "worker": -1, "round": -1, "marker": "/"})
        return zygote.popen(
            *self.words, *more, script=Path(faults.__file__), cold=cold, cwd=self.folder, env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(
        self, fault: dict[str, Any] | None = None, *more: str, cold: bool = False
    ) -> "subprocess.CompletedProcess[str]":
        return zygote.wait_for(self.start(fault, *more, cold=cold))

    def state(self) -> dict[str, bytes]:
        tensors, _ = store.read_state(self.folder / "out" / f"round-{NUM_ROUNDS:06d}.safetensors")
        return {name: array.tobytes() for name, array in tensors.items()}

    def record(self) -> dict[str, Any]:
        """The parts of the record that faults must not change: status, metrics without times, shard table, model path."""
        (folder,) = (self.folder / "runs").glob("[0-9]*")
        run, info, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("run", "info", "metrics"))
        reproducible = {
            name: (metric["steps"], metric["values"] if "second" not in name else None)
            for name, metric in metrics.items()
            if name != "seconds.checkpoint"  # a killed launcher misses the time of the last one
        }
        return {
            "status": run["status"],
            "metrics": reproducible,
            "shards": info["shards"],
            "model": info["files"].get("model"),  # without a global model, none is published
        }


def job(folder: Path, server: str) -> Job:
    """Three sites with 20, 20 and 19 examples; three rounds of two epochs, with a checkpoint after each."""
    folder.mkdir(exist_ok=True)
    words = [
        "with", "site_ids=[-1,-1,-1]", f"num_rounds={NUM_ROUNDS}", "num_local_epochs=2", "task_name=csv",
        f"train_path={builders.write_csv(folder / 'train.csv', 59)}", f"test_path={builders.write_csv(folder / 't.csv', 23, 1)}",
        "text_column=body", "label_column=topic", f"model={builders.pretrained(folder / 'model')}", "batch_size=8",
        "max_seq_len=16", "learning_rate=0.01", "threads_per_site=1", "job_name=news", "checkpoints_dir=out",
        "stall_timeout=10",
    ]  # fmt: skip
    return Job(words, folder, {"SACRED_HOST": server, "SACRED_DATABASE": folder.name} if server else {})


def synced(finished: Job) -> None:
    """Bring the records of a job up to date: on a busy machine, a job ends before its entry is complete."""
    name = next(word for word in reversed(finished.words) if word.startswith("job_name="))
    done = finished._replace(words=["sync", "with", name, "checkpoints_dir=out"]).run()
    assert done.returncode == 0, done.stderr
