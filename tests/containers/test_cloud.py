"""The image as clouds run it: with the jobs in cloud/, the clouds' variables, and machines that are reclaimed."""

import contextlib
import json
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.conftest import ObjectStore
from tests.containers.conftest import docker
from tests.scripts.script import wait_for_row
from tests.scripts.test_cloud import read

pytestmark = [pytest.mark.containers, pytest.mark.timeout(900)]
Process = subprocess.Popen

# CPUs and a small model instead of GPUs and a large one.
SMALL = [
    "site_ids=[-1]", "threads_per_site=1", "model=tiny", "max_seq_len=16", "batch_size=8", "learning_rate=0.01", "num_rounds=3",
]  # fmt: skip


def entry(name: str, container: Mapping[str, Any]) -> list[str]:
    """The arguments of `docker run` for a container in cloud/: its command, the image's name and the arguments."""
    command = container.get("command", [])
    assert len(command) <= 1, "--entrypoint takes a single word"
    return [*(word for path in command for word in ("--entrypoint", path)), name, *container["args"]]


def last_of_each_key(words: list[str]) -> list[str]:
    """The words without the keys that occur again later."""
    keys = [word.partition("=")[0] if "=" in word else None for word in words]
    return [word for place, word in enumerate(words) if keys[place] is None or keys[place] not in keys[place + 1 :]]


@contextlib.contextmanager
def container(
    host: str, network: str, words: list[str], *options: str, **environ: str
) -> "Iterator[tuple[str, Process[str]]]":
    """Run a container; yields its name and its process. Removes it with its volumes at the end."""
    name = f"scaling_fl-test-{uuid.uuid4().hex[:8]}"
    variables = [word for key, value in environ.items() for word in ("--env", f"{key}={value}")]
    process = subprocess.Popen(
        [
            "docker", "run", "--rm", "--name", name, "--hostname", host, "--network", network, *variables, *options,
            *last_of_each_key(words),
        ],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield name, process
    finally:
        docker("rm", "--force", "--volumes", name, check=False)
        process.communicate(timeout=300)


def write_news(path: Path, count: int, seed: int) -> Path:
    """Write texts in the format of AG News."""
    texts, labels = builders.texts_and_labels(count, seed)
    path.write_text("".join(f'"{1 + label}","","{text}"\n' for text, label in zip(texts, labels, strict=True)))
    return path


def published(fs: Any, folder: str) -> list[int]:
    fs.invalidate_cache()
    return sorted(int(path[-18:-12]) for path in fs.glob(f"{folder}/round-*"))


@pytest.mark.parametrize("object_store", ["gs"], indirect=True)
def test_the_replacement_for_a_machine_that_vertex_reclaims_reaches_the_same_result(
    image: str, object_store: ObjectStore, tmp_path: Path
) -> None:
    """Only the bucket survives. The reference is an uninterrupted job."""
    bucket, environ, fs = object_store
    for name, count, seed in (("train.csv", 60, 0), ("test.csv", 9, 1)):
        fs.put_file(str(write_news(tmp_path / name, count, seed)), f"{bucket}/agnews/{name}")
    job = read("vertex-custom-job.yaml")["workerPoolSpecs"][0]["containerSpec"]
    words = [word.replace("gs://BUCKET", bucket) for word in entry(image, job)] + [
        *SMALL,
        "site_ids=[-1,-1]",
        "num_rounds=60",
    ]
    spec = {
        "cluster": {"workerpool0": ["cmle-training-workerpool0-0:2222"]},
        "task": {"type": "workerpool0", "index": 0},
    }
    variables = {"CLUSTER_SPEC": json.dumps(spec), "HF_HOME": "/tmp/huggingface"} | environ
    vertex = variables | {"AIP_CHECKPOINT_DIR": f"{bucket}/news/checkpoints/"}

    with container("first", "host", words, **vertex) as (name, process):
        text = wait_for_row(process, 2)
        assert f"checkpoints_dir={bucket}/news/checkpoints/, from AIP_CHECKPOINT_DIR" in text
        deadline = time.monotonic() + 60
        while not published(fs, f"{bucket}/news/checkpoints") and time.monotonic() < deadline:
            time.sleep(0.1)
        docker("kill", name)
        assert process.wait(timeout=300) == 137
    newest = published(fs, f"{bucket}/news/checkpoints")[-1]
    assert newest < 60, "otherwise the first container would have finished the job"

    with container("second", "host", words, **vertex) as (_, process):
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, text
    assert "job news: a run on first renewed its lease" in text, "its lease hasn't expired"
    assert f"job news resumes after round {newest}" in text
    with container("whole", "host", words, **variables, AIP_CHECKPOINT_DIR=f"{bucket}/whole/checkpoints/") as (
        _,
        process,
    ):
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, text
    assert "resumes" not in text
    models = [fs.cat_file(f"{bucket}/{job}/checkpoints/model/model.safetensors") for job in ("news", "whole")]
    assert models[0] == models[1]


def vertex(rank: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The container and the variables of node `rank` of three."""
    pools = read("vertex-custom-job-nodes.yaml")["workerPoolSpecs"]
    assert [pool["replicaCount"] for pool in pools] == [1, 2]
    cluster = {"workerpool0": ["node-0:2222"], "workerpool1": ["node-1:2222", "node-2:2222"]}
    pool, index = min(rank, 1), max(rank - 1, 0)
    spec = {"cluster": cluster, "task": {"type": f"workerpool{pool}", "index": index}}
    return pools[pool]["containerSpec"], {"CLUSTER_SPEC": json.dumps(spec)}


def kubeflow(rank: int) -> tuple[dict[str, Any], dict[str, str]]:
    return read("kubeflow-trainjob.yaml")["spec"]["trainer"], {
        "PET_NNODES": "3", "PET_NODE_RANK": str(rank), "PET_MASTER_ADDR": "node-0", "PET_MASTER_PORT": "29400", "PET_NPROC_PER_NODE": "1",
    }  # fmt: skip


@pytest.mark.parametrize("cloud", [vertex, kubeflow])
def test_containers_on_a_network_form_one_job_with_each_clouds_variables(
    image: str, tmp_path: Path, cloud: Any
) -> None:
    """Three containers with one site each, connected by name, have the result of three sites in one container."""
    write_news(tmp_path / "train.csv", 60, 0)
    write_news(tmp_path / "test.csv", 9, 1)
    small = [*SMALL, "train_path=/data/train.csv", "test_path=/data/test.csv", "checkpoints_dir=/out"]
    tmp_path.chmod(0o755)  # the image's user must read it
    for folder in ("nodes", "one"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder).chmod(0o777)
    data, out = ["--volume", f"{tmp_path}:/data:ro"], "--volume={}:/out".format

    network = f"scaling_fl-test-{uuid.uuid4().hex[:8]}"
    docker("network", "create", network)
    try:
        with contextlib.ExitStack() as stack:
            processes = []
            for rank in range(3):
                job, environ = cloud(rank)
                node = container(
                    f"node-{rank}", network, [*entry(image, job), *small],
                    f"--network-alias=node-{rank}", *data, *([out(tmp_path / "nodes")] if rank == 0 else []), **environ,
                )  # fmt: skip
                processes.append(stack.enter_context(node)[1])
            outputs = [process.communicate(timeout=600)[0] for process in processes]
            assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(outputs)
        assert "3 sites on 3 nodes (1 process here)" in outputs[0]
        assert "this is node 2: node 0 shows the rounds" in outputs[2]
    finally:
        docker("network", "rm", network)
    job, _ = cloud(0)
    with container(
        "one", "none", [*entry(image, job), *small, "site_ids=[-1,-1,-1]"], *data, out(tmp_path / "one")
    ) as (_, process):
        text = process.communicate(timeout=600)[0]
        assert process.returncode == 0, text
    models = [(tmp_path / folder / "model" / "model.safetensors").read_bytes() for folder in ("nodes", "one")]
    assert models[0] == models[1]
