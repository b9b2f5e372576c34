"""The benchmark of a GPU, with the CPU in its place: what it calls exists, and its rows follow from what it measures."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.distributed.shared_memory import SharedMemory
from tests.conftest import ROOT

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """The scripts gpu, gpu_training and gpu_sites, on the CPU, with a small BERT in the place of both shapes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    gpu, training, sites = (importlib.import_module(name) for name in ("gpu", "gpu_training", "gpu_sites"))
    small = dict.fromkeys(training.SHAPES, lambda num_labels: transformers.BertConfig(num_labels=num_labels, **TINY))
    monkeypatch.setattr(training, "SHAPES", small)
    for module in (training, sites):
        monkeypatch.setattr(module, "DEVICE", torch.device("cpu"))
    for name in ("synchronize", "empty_cache", "set_device"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 1000))
    return gpu, training, sites


def test_both_ways_of_training_have_a_speed(modules: tuple[Any, Any, Any]) -> None:
    """FLOPs per example are the same: 6 for each parameter outside the embeddings and each token."""
    _, training, _ = modules
    speeds = [training.ours("BERT-base", 4, 3, "fp32"), training.trainer("BERT-base", 4, 3, "fp32", "group_by_length")]
    lengths = [len(ids) for ids in training.examples(12)[0]]
    weights = sum(p.numel() for name, p in training.module("BERT-base").named_parameters() if "embeddings" not in name)
    for examples, flops in speeds:
        assert flops / examples == pytest.approx(6 * weights * np.mean(lengths))


@pytest.mark.parametrize("exact", [True, False])
def test_sites_check_their_mean(modules: tuple[Any, Any, Any], tmp_path: Path, exact: bool) -> None:
    events: list[dict[str, Any]] = []
    modules[2].work(events.append, 0, 1, SharedMemory(), str(tmp_path), "fp32", 12, 3, exact, 1500)
    (event,) = events
    assert event["value"]["memory"] == 500
    assert len(event["value"]["train"]) == len(event["value"]["aggregate"]) == 3


def test_a_trainer_that_fails_costs_its_own_rows_alone(
    modules: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = modules[0]

    def script(_: str, code: str, *arguments: Any, **environ: str) -> Any:
        if code == gpu.OURS:
            return (50.0, 5e11) if arguments[-1] else (100.0, 1e12)
        if arguments[-1] == "random":
            sys.exit("out of memory")
        return 80.0, 8e11

    monkeypatch.setattr(gpu.measure, "script", script)
    monkeypatch.setattr(gpu, "trainer", lambda: ("python", {"random": "one", "group_by_length": "two"}))
    rows = list(gpu.training("BERT-base", 32, argparse.Namespace(texts=64, repeats=2), "bf16", 4e12, {}))
    assert [row[1:] for row in rows] == [
        ("100/s", "80/s", "1.25", "≥ 1.5"), ("50/s", "100/s", "0.50", ""),
        ("1 TFLOP/s", "4 TFLOP/s", "0.25 (Trainer 0.20)", "≥ 0.25"),
    ]  # fmt: skip


def test_sites_are_a_share_of_one(modules: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight sites, an aggregation moves nine rows."""
    gpu, alone = modules[0], dict[str, float]()

    def script(_: str, code: str, number: int, *arguments: Any, **environ: str) -> Any:
        aggregate = 0.02 if arguments[-1] else 0.01
        return {"through": "CUDA IPC", "train": 1 + number / 10, "aggregate": aggregate, "bytes": 1e8, "memory": 2**31}

    monkeypatch.setattr(gpu.measure, "script", script)
    rows = [list(gpu.sites(number, 99, "bf16", 1e11, {}, "", alone)) for number in (1, 8)][1]
    assert [row[1:] for row in rows] == [
        ("55/s, 2.0 GiB", "90/s", "0.61", "≥ 0.9"), ("20.0 ms, 45 GB/s", "100 GB/s", "0.45", ""),
        ("10.0 ms, 90 GB/s", "100 GB/s", "0.90", "≥ 0.5"),
    ]  # fmt: skip
