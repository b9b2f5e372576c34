"""A real job, recorded by MLflow around an outage of its server."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import builders as models
from tests.tracking.mlflow import Viewer

SECRET = "hunter-2-of-mlflow"


def test_a_job_is_recorded_before_during_and_after_an_outage(
    command: Callable[..., "subprocess.CompletedProcess[str]"], server: Viewer, tmp_path: Path
) -> None:
    models.write_csv(tmp_path / "train.csv", 20)
    models.write_csv(tmp_path / "t.csv", 9, 1)
    words: list[Any] = [
        "with", "site_ids=[-1,-1]", "threads_per_site=1", "task_name=csv", "train_path=train.csv", "test_path=t.csv",
        "text_column=body", "label_column=topic", "model=tiny", "max_seq_len=16", "job_name=news", "report=False",
    ]  # fmt: skip
    account = f"me:{SECRET}@"
    environ = {"MLFLOW_TRACKING_URI": server.uri.replace("//", f"//{account}"), "MLFLOW_EXPERIMENT_NAME": "lab"}

    def run(*arguments: str) -> str:
        """What the command prints, without line breaks."""
        done = command(*arguments, **environ)
        assert done.returncode == 0, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        return " ".join(done.stdout.split())

    server.stop()
    said = run(*words, "num_rounds=1")
    assert f"note: MLflow at 127.0.0.1:{server.port}: it can't be reached (ConnectionRefusedError: " in said
    assert "; the job will be recorded there once that is fixed" in said
    assert "`sync with job_name=news` brings it up to date" in said
    server.start()
    assert f"MLflow {server.uri}/#/experiments/" in run("sync", "with", "job_name=news")
    assert (server.run()["status"], server.run()["params"]["num_rounds"]) == ("FINISHED", "1")
    first = server.run()["run_id"]
    assert f"/runs/{first}" in run(*words, "num_rounds=2")
    recorded = json.loads((tmp_path / "runs" / "1" / "metrics.json").read_text())["validation.accuracy"]
    assert server.history("validation/accuracy") == list(zip(recorded["steps"], recorded["values"], strict=True))
    assert recorded["steps"] == [0, 1, 2]
    assert server.file("metrics.csv") == (tmp_path / "runs" / "1" / "metrics.csv").read_bytes()
    files = [path for name in ("runs", "checkpoints") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
