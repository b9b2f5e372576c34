"""What a machine holds at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.models.weights import weights_size
from scaling_fl.sweep import cells, slots
from scaling_fl.sweep.cells import Cell
from tests.scripts.executable import executable


def cell(name: int, **keys: Any) -> Cell:
    base = {"model": "tiny", "task_name": "demo", "site_ids": [-1], "threads_per_site": 1}
    return cells.named_cells("s", base | keys, [{"seed": name}])[0]


def machine(**values: Any) -> slots.Slots:
    return slots.Slots(**({"cores": 4, "gpus": (), "memory": 100e9} | values))


def test_cells_run_together_until_the_cores_are_taken() -> None:
    free = machine()
    assert free.take(cell(1, site_ids=[-1, -1])) == {}
    assert free.take(cell(2)) == {}
    assert free.take(cell(3, site_ids=[-1, -1])) is None
    assert free.take(cell(4)) == {}
    free.release(cell(1))
    assert free.take(cell(3, site_ids=[-1, -1])) == {}


def test_without_threads_a_cell_takes_all_cores_and_a_larger_one_than_the_machine_runs_alone() -> None:
    free = machine()
    assert free.take(cell(1, threads_per_site=None)) == {}
    assert free.take(cell(2)) is None
    free.release(cell(1))
    assert free.take(cell(3, site_ids=[-1] * 9)) == {}
    assert free.take(cell(2)) is None


def test_every_cell_gets_gpus_of_its_own() -> None:
    free = machine(cores=64, gpus=(0, 1, 5))
    assert free.take(cell(1, site_ids=[0, 0, 1, 1])) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert free.take(cell(2, site_ids=[0, 1])) is None
    assert free.take(cell(3, site_ids=[0, 0])) == {"CUDA_VISIBLE_DEVICES": "5"}
    assert free.take(cell(4)) == {}, "a job on CPUs needs none"
    free.release(cell(1))
    assert free.take(cell(2, site_ids=[0, 1])) == {"CUDA_VISIBLE_DEVICES": "0,1"}


def test_memory_and_the_number_of_jobs_are_limits() -> None:
    free = machine(memory=3e9, measured={slots.shape(cell(1)): 1.4e9})
    assert [free.take(cell(number)) is not None for number in (1, 2, 3)] == [True, True, False]
    assert [machine(max_jobs=1).take(cell(1)) is not None] == [True]
    one = machine(max_jobs=1)
    one.take(cell(1))
    assert one.take(cell(2)) is None


def test_a_cell_never_needs_more_cores_than_there_are() -> None:
    """Beside GPUs, a core for each process; else a thread each."""
    beside_gpus = machine(gpus=(0, 1))
    for site_ids, threads, cores in (
        ([0], None, 1),
        ([0, 1], 2, 4),
        ([0] * 9, None, 4),
        ([0, 1], 3, 4),
        ([-1], None, 4),
    ):
        assert beside_gpus.cores_of(cell(1, site_ids=site_ids, threads_per_site=threads)) == cores
    for site_ids, threads, cores in (([-1], 1, 1), ([-1] * 9, 1, 4), ([0], None, 4)):
        assert machine().cores_of(cell(1, site_ids=site_ids, threads_per_site=threads)) == cores


def test_memory_is_estimated_from_the_weights_and_replaced_by_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 500)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 300)
    assert weights_size(str(tmp_path)) == 500, "weights in the older format; nothing else"
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"0" * 900)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"0" * 600)
    assert weights_size(str(tmp_path)) == 1500, "all parts, and the same weights in the older format don't count again"
    assert weights_size("lab/never-heard-of") is None
    assert weights_size("not a hub id") is None
    assert weights_size("lab/in-parts") is None
    of_the_hub = tmp_path / "cache" / "models--lab--in-parts"
    (of_the_hub / "refs").mkdir(parents=True)
    (of_the_hub / "refs" / "main").write_text("c0ffee")
    shutil.copytree(tmp_path, of_the_hub / "snapshots" / "c0ffee", ignore=lambda *_: ["cache"])
    (of_the_hub / "snapshots" / "c0ffee" / "config.json").write_text("{}")
    assert weights_size("lab/in-parts") == 1500
    large = cell(1, model=str(tmp_path), site_ids=[-1, -1], optimiser="sgd")
    assert slots.memory_of(large, {}) == 2 * (0.6e9 + 5 * 1500)
    for optimiser, moments in (("adagrad", 1), ("adamw", 2)):  # a copy each
        other = cell(1, model=str(tmp_path), optimiser=optimiser)
        assert slots.memory_of(other, {}) == 0.6e9 + (5 + moments) * 1500
    assert slots.memory_of(cell(1, model="lab/never-heard-of", site_ids=[-1] * 3), {}) == 3 * (0.6e9 + 1.5e9)
    assert slots.memory_of(large, {slots.shape(large): 7.0}) == 7.0
    assert slots.shape(large) != slots.shape(cell(1, model=str(tmp_path), site_ids=[-1, -1], optimiser="adamw"))
    adapters = cell(1, model=str(tmp_path), site_ids=[-1, -1, -1], optimiser="sgd", trainable="lora")
    assert slots.memory_of(adapters, {}) == 3 * 0.6e9 + 1500, "one base for all"
    assert slots.shape(adapters) != slots.shape(cell(1, model=str(tmp_path), site_ids=[-1, -1, -1], optimiser="sgd"))


@pytest.mark.parametrize(
    "other",
    [{"model": "bert"}, {"batch_size": 2}, {"max_seq_len": 8}, {"optimiser": "adagrad"}, {"site_ids": [-1, -1]}],
)
def test_memory_is_measured_for_like_cells_alone(other: dict[str, Any]) -> None:
    base = {"model": "tiny", "batch_size": 4, "max_seq_len": 16, "optimiser": "sgd", "site_ids": [-1]}
    assert slots.shape(cell(1, **base)) == slots.shape(cell(2, **base))
    assert slots.shape(cell(1, **base)) != slots.shape(cell(1, **base | other))


def test_the_memory_of_a_session_counts_all_of_its_processes() -> None:
    program = (
        "import os, sys; b = bytearray(os.urandom(1)) * 30_000_000; os.fork(); os.write(1, b'1\\n'); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == [b"1\n"] * 2
        used = slots.memory_used(process.pid)
        assert process.stdin is not None
        process.stdin.close()
    assert 30e6 < used < 60e6, "both share the 30 MB"


def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    found = slots.of_this_machine(None, {})
    assert found.gpus == (2, 3)
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory > 0


@pytest.mark.parametrize(
    ("visible", "answer", "gpus"),
    [
        (None, "echo 0; echo 1; echo 4", (0, 1, 4)),
        (None, "echo NVIDIA-SMI has failed; exit 9", ()),
        ("2, 3", "echo 0", (2, 3)),
        ("", "echo 0; echo 1", ()),
    ],
)
def test_gpus_are_those_that_jobs_would_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, answer: str, gpus: tuple[int, ...]
) -> None:
    monkeypatch.setenv("PATH", executable(tmp_path, "nvidia-smi", answer))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.of_this_machine(None, {}).gpus == gpus
