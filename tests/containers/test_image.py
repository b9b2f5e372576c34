"""The content of the image."""

import contextlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import SECRET, docker

pytestmark = [pytest.mark.containers, pytest.mark.timeout(2400)]


def test_no_secret_is_in_any_layer_or_in_the_history(image: str) -> None:
    history = docker("history", "--no-trunc", image).stdout + docker("image", "inspect", image).stdout
    assert SECRET not in history
    assert not re.search(r"(?i)(token|password|secret|access_key)[a-z_]*=\S", history)
    saved = subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE)
    found, names = [], set()
    with tarfile.open(fileobj=saved.stdout, mode="r|") as layers:
        for file, content in (pair for layer in layers if layer.isreg() for pair in _files(layers.extractfile(layer))):
            names.add(file)
            if SECRET.encode() in content:
                found.append(file)
    saved.wait()
    assert found == []
    assert "opt/scaling_fl/scripts/train_federated.py" in names, "the layers were read"
    private = re.compile(r"opt/scaling_fl/((.*/)?(\.env|\.git|\.venv|key\.json)|data|runs|checkpoints)(/|$)")
    assert [name for name in names if private.match(name)] == []


def _files(layer: Any) -> Iterator[tuple[str, bytes]]:
    """Yields the name and the content of a layer's files; the content of large files is left out."""
    with (
        contextlib.suppress(tarfile.ReadError),
        tarfile.open(fileobj=layer, mode="r|") as files,
    ):  # some members are not layers
        for file in files:
            small = file.isreg() and file.size < 100_000
            yield file.name, files.extractfile(file).read() if small else b""


def test_the_image_is_labelled_and_does_not_run_as_root(image: str) -> None:
    (found,) = json.loads(docker("image", "inspect", image).stdout)
    assert found["Config"]["User"] == "1000"
    assert found["Config"]["Volumes"] == {"/cache": {}}
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == "scaling_fl"
    assert labels["org.opencontainers.image.revision"] == ""
    script = "import os; print(os.getuid(), os.access('/opt/scaling_fl', os.W_OK), os.environ['HF_HOME'])"
    assert docker("run", "--rm", image, "-c", script).stdout == "1000 False /cache/huggingface\n"


def test_a_change_of_code_does_not_rebuild_the_dependencies(image: str, copy: Path, environ: dict[str, str]) -> None:
    def layers() -> list[str]:
        return json.loads(docker("image", "inspect", image).stdout)[0]["RootFS"]["Layers"]

    before = layers()
    changed = copy / "scaling_fl" / "__init__.py"
    text = changed.read_text()
    try:
        changed.write_text(text + "NEW = 1\n")
        script = "import sys; sys.path.insert(0, '/opt/scaling_fl'); import scaling_fl; print(scaling_fl.NEW)"
        run = subprocess.run(
            [str(copy / "run-local.sh"), "-c", script],
            cwd=copy,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stdout == "1\n", "run-local.sh rebuilds the image: " + run.stderr
    finally:
        changed.write_text(text)
    after = layers()
    same = [old == new for old, new in zip(before, after, strict=True)]
    assert same.index(False) == len(same) - 3, "only the last three layers change: the code, the bytecode, and the rest"


def test_the_index_for_pytorch_reaches_the_build(engine: None, copy: Path) -> None:
    environ = os.environ | {"TORCH_INDEX": "https://example.com/cpu", "SCALING_FL_COMMIT": "abc"}
    found = docker("compose", "--profile", "job", "config", "--format", "json", cwd=copy, env=environ).stdout
    build = json.loads(found)["services"]["main"]["build"]
    assert build["args"] == {"TORCH_INDEX": "https://example.com/cpu", "COMMIT": "abc"}
    assert (
        '--index-url "$TORCH_INDEX" "$(grep \'^torch==\' requirements.txt)"' in (copy / build["dockerfile"]).read_text()
    )


def test_the_image_alone_runs_scripts_and_tests(image: str) -> None:
    shown = docker("run", "--rm", "--init", image, "scripts/train_federated.py", "print_config", "with", "demo")
    assert "task_name = 'demo'" in shown.stdout
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/data/test_shards.py", "tests/scripts/test_cloud.py"]
    tests = docker("run", "--rm", "--init", image, *words, check=False)
    assert tests.returncode == 0, tests.stdout
    assert re.search(r"\d+ passed", tests.stdout)
    assert docker("run", "--rm", image, check=False).returncode == 2


def test_jobs_on_the_cpu_need_no_dev_shm(image: str) -> None:
    """Jobs share anonymous memory. If this fails, docker-compose.yaml must set the size of /dev/shm."""
    words = [
        "scripts/train_federated.py",
        "with",
        "demo",
        "num_rounds=1",
        "max_train_examples=100",
        "max_test_examples=50",
    ]
    done = docker("run", "--rm", "--init", "--shm-size", "4k", image, *words)
    assert "run record" in done.stdout
