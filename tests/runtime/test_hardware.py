import os
import platform

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.resident import precision
from scaling_fl.models.devices import find_devices, num_cores
from scaling_fl.runtime.hardware import environment, resolved, threads_per_site


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A machine with two GPUs; the compute capabilities can be changed."""
    capabilities = [(8, 0), (9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[int(device[-1])])
    monkeypatch.setattr("scaling_fl.models.devices.gpus.check", lambda devices: None)
    monkeypatch.setattr("scaling_fl.models.devices.gpus.mps_is_running", lambda: True)
    return capabilities


def test_each_entry_of_site_ids_is_the_index_of_a_gpu(two_gpus: list[tuple[int, int]]) -> None:
    notes: list[str] = []
    assert find_devices(Config(site_ids=(1, 0, 1)), notes) == ("cuda:1", "cuda:0", "cuda:1")
    assert find_devices(Config(site_ids=(-1, -1)), notes) == ("cpu", "cpu")
    assert notes == []
    with pytest.raises(UserError, match=r"site_ids=\[0, 2\]: there is no GPU 2; this machine has GPUs 0 to 1"):
        find_devices(Config(site_ids=(0, 2)), notes)


def test_precision_must_be_said_if_only_some_gpus_have_bf16(two_gpus: list[tuple[int, int]]) -> None:
    two_gpus[1] = (7, 5)
    with pytest.raises(UserError, match="some of these GPUs have bf16"):
        find_devices(Config(site_ids=(0, 1)), [])
    assert find_devices(Config(site_ids=(0, 1), precision="fp16"), []) == ("cuda:0", "cuda:1")
    assert find_devices(Config(site_ids=(1, 1)), []) == ("cuda:1", "cuda:1")


def test_without_a_gpu_the_sites_run_on_the_cpu_and_a_note_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    notes: list[str] = []
    assert find_devices(Config(site_ids=(0, 5)), notes) == ("cpu", "cpu")
    assert notes == ["this machine has no GPU that torch can use: the sites run on the CPU"]


def test_more_threads_than_cores_are_noted() -> None:
    notes: list[str] = []
    find_devices(Config(site_ids=(-1,), threads_per_site=num_cores()), notes)
    assert notes == []
    find_devices(Config(site_ids=(-1,), threads_per_site=num_cores() + 1), notes)
    assert notes == [
        f"threads_per_site={num_cores() + 1}: this machine has {num_cores()} cores; more threads than cores slow training down"
    ]


def test_the_environment_of_a_job_names_what_its_bits_depend_on() -> None:
    found = environment(Config(precision="bf16"), ("cpu",))
    assert found == {
        "python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__,
        "numpy": np.__version__, "precision": "bf16",
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }  # fmt: skip


def test_a_gpu_is_named_as_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"an accelerator at {device}")
    found = environment(Config(precision="fp32"), ("cuda:1", "cuda:0"))
    assert found["processor"] == "an accelerator at cuda:1"


@pytest.mark.parametrize(
    ("device", "chosen"), [("cuda:0", "fp32"), ("cuda:1", "bf16"), ("cuda:2", "bf16"), ("cpu", "fp32")]
)
def test_automatic_precision_is_bf16_on_gpus_that_have_it(
    monkeypatch: pytest.MonkeyPatch, device: str, chosen: str
) -> None:
    capabilities = [(7, 5), (8, 0), (12, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
    assert precision(Config(), torch.device(device)) == chosen
    assert precision(Config(precision="fp16"), torch.device(device)) == "fp16"


def test_cores_are_counted_where_the_system_does_not_say_which_are_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5})
    assert num_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert num_cores() == 12


def test_what_a_job_would_use_for_keys_that_are_not_set() -> None:
    found = resolved(Config(site_ids=(-1, -1), threads_per_site=3))
    assert (found["partition"], found["num_sites"], found["threads_per_site"], found["precision"]) == (
        "iid",
        2,
        3,
        "fp32",
    )
    assert resolved(Config(site_ids=(-1,), num_sites=9))["num_sites"] == 9
    column = resolved(Config(site_ids=(-1, -1), partition="column", partition_column="author"))
    assert (column["partition"], column["num_sites"]) == ("column", None), "the data have a site for each value"


@pytest.mark.parametrize(("num_sites", "threads"), [(1, 5), (2, 2), (5, 1), (6, 1)])
def test_sites_share_the_cores_and_each_has_one_thread_at_least(
    monkeypatch: pytest.MonkeyPatch, num_sites: int, threads: int
) -> None:
    monkeypatch.setattr("scaling_fl.runtime.hardware.num_cores", lambda: 5)
    assert threads_per_site(Config(site_ids=(-1,) * num_sites)) == threads
    assert threads_per_site(Config(site_ids=(-1,) * num_sites, threads_per_site=3)) == 3
