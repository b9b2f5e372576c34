"""The cloud job files are valid, and a replacement for a reclaimed machine resumes the job."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

from scaling_fl.config.schema import Config
from tests import builders
from tests.conftest import ROOT, ObjectStore
from tests.scripts.script import start, wait_for_row


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / "cloud" / name).read_text())


def assert_kept(given: Any, returned: Any) -> None:
    """Assert that everything in `given` has survived the round trip through the published model."""
    if isinstance(given, dict):
        for key, value in given.items():
            assert key in returned, f"there is no field {key}"
            assert_kept(value, returned[key])
    elif isinstance(given, list):
        for value, other in zip(given, returned, strict=True):
            assert_kept(value, other)
    else:
        assert given == returned


def test_kubeflow_knows_every_field_of_the_train_job() -> None:
    job = read("kubeflow-trainjob.yaml")
    assert_kept(job, json.loads(TrainerV1alpha1TrainJob.from_dict(job).to_json()))
    (command,) = job["spec"]["trainer"]["command"]
    assert command.endswith("/containers/enter.sh"), "not torchrun: the launcher starts the processes"


@pytest.mark.parametrize("name", ["vertex-custom-job.yaml", "vertex-custom-job-nodes.yaml", "kubeflow-trainjob.yaml"])
def test_the_commands_of_the_jobs_are_valid(name: str) -> None:
    job = read(name)
    if "spec" in job:
        commands = [job["spec"]["trainer"]["args"]]
    else:
        pools = job["workerPoolSpecs"]
        assert pools[0]["replicaCount"] == 1, "node 0"
        commands = [pool["containerSpec"]["args"] for pool in pools]
    for script, word, *keys in commands:
        assert (ROOT / script).is_file()
        assert word == "with"
        values = dict(key.split("=", 1) for key in keys)
        Config.from_mapping({key: yaml.safe_load(value) for key, value in values.items()})
        assert values["job_name"], "otherwise a replacement machine would start a new job"


@pytest.mark.parametrize("object_store", ["gs"], indirect=True)
def test_a_container_restarted_by_vertex_resumes_the_job(object_store: ObjectStore, tmp_path: Path) -> None:
    bucket, environ, fs = object_store
    for name, count, seed in (("train.csv", 60, 0), ("test.csv", 9, 1)):
        fs.put_file(str(builders.write_csv(tmp_path / name, count, seed)), f"{bucket}/data/{name}")
    words = [
        "with", "site_ids=[-1,-1]", "task_name=csv", f"train_path={bucket}/data/train.csv",
        f"test_path={bucket}/data/test.csv", "text_column=body", "label_column=topic",
        f"model={builders.pretrained(tmp_path / 'model')}", "max_seq_len=16", "batch_size=8", "threads_per_site=1",
        "job_name=news",
    ]  # fmt: skip
    spec = {"cluster": {"workerpool0": ["cmle-0:2222"]}, "task": {"type": "workerpool0", "index": 0}}
    vertex = {"CLUSTER_SPEC": json.dumps(spec), "AIP_CHECKPOINT_DIR": f"{bucket}/news/checkpoints/"} | environ
    process = start(tmp_path, *words, "num_rounds=9999", **vertex)
    text = wait_for_row(process, 2)
    assert f"checkpoints_dir={bucket}/news/checkpoints/, from AIP_CHECKPOINT_DIR" in text
    deadline = time.monotonic() + 240
    while not fs.glob(f"{bucket}/news/checkpoints/round-*") and time.monotonic() < deadline:
        time.sleep(0.1)
        fs.invalidate_cache()
    os.killpg(process.pid, signal.SIGKILL)  # the machine is reclaimed, with its disk
    process.communicate()
    shutil.rmtree(tmp_path / "runs")
    fs.invalidate_cache()
    newest = max(int(path[-18:-12]) for path in fs.glob(f"{bucket}/news/checkpoints/round-*"))

    resumed = start(tmp_path, *words, f"num_rounds={newest + 1}", **vertex)
    rest = resumed.communicate()[0]
    assert resumed.returncode == 0, rest
    assert f"job news resumes after round {newest}" in rest
    assert fs.exists(f"{bucket}/news/checkpoints/model/model.safetensors")
