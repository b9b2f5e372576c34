"""What is refused on machines whose GPUs can't work, with a driver and a torch that are stand-ins."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
import transformers

from scaling_fl.commands import trained_model
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import gpus
from scaling_fl.models.devices import find_devices
from tests.conftest import ROOT


class Driver:
    """The management library of a machine with GPUs."""

    def __init__(self) -> None:
        self.version, self.count, self.modes, self.opened = "595.71.05", 2, dict[str, int](), 0

    def open(self) -> None:
        self.opened += 1

    def close(self) -> None:
        self.opened -= 1

    def mode_of(self, uuid: str) -> int:
        return self.modes[uuid]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    for name, function in {
        "nvmlInit": found.open, "nvmlShutdown": found.close, "nvmlDeviceGetCount": lambda: found.count,
        "nvmlSystemGetDriverVersion": lambda: found.version, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetComputeMode": found.mode_of,
    }.items():  # fmt: skip
        monkeypatch.setattr(pynvml, name, function)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return found


@pytest.mark.parametrize(
    ("count", "version", "cuda", "message"),
    [
        (1, "535.183.01", "13.0", r"a GPU, and its driver 535\.183\.01 is too old: .* with CUDA 13\.0 needs 580 or later"),
        (2, "579.9", "13.2", "2 GPUs, and its driver 579.9 is too old"),
        (2, "524.0", "12.8", "needs 525 or later"),
        (2, "595.71.05", None, r"2 GPUs, and PyTorch .* is built without CUDA; .*TORCH_INDEX=https://.*/cu130"),
        (1, "580.65", "13.0", r"\(driver 580\.65\), but PyTorch .* can't use any: no kernel module"),
    ],
)  # fmt: skip
def test_gpus_that_torch_does_not_find_are_refused_with_the_reason(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, count: int, version: str, cuda: str | None, message: str
) -> None:
    def fail() -> None:
        raise RuntimeError("no kernel module\nand more lines")

    driver.count, driver.version = count, version
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(UserError, match=message) as refusal:
        find_devices(Config(site_ids=(0, 1)), [])
    assert "site_ids=[-1,-1]" in str(refusal.value)
    assert "more lines" not in str(refusal.value)
    assert driver.opened == 0
    assert find_devices(Config(site_ids=(-1, -1)), []) == ("cpu", "cpu")


@pytest.mark.parametrize("hidden", ["", "-1", " ", "NoDevFiles"])
def test_gpus_that_are_hidden_on_purpose_are_not_missed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    notes: list[str] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert find_devices(Config(site_ids=(0,)), notes) == ("cpu",)
    assert notes == ["this machine has no GPU that torch can use: the sites run on the CPU"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="this machine has 2 GPUs"):
        find_devices(Config(site_ids=(0,)), [])


def test_a_driver_without_gpus_and_no_driver_are_a_machine_without(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    driver.count = 0
    assert find_devices(Config(site_ids=(0,)), []) == ("cpu",)
    driver.count = 1
    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert find_devices(Config(site_ids=(0,)), []) == ("cpu",)


@pytest.fixture
def cards(driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    """Two GPUs that torch can use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an accelerator")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of-{device}"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    driver.modes = {"GPU-of-cuda:0": pynvml.NVML_COMPUTEMODE_DEFAULT, "GPU-of-cuda:1": pynvml.NVML_COMPUTEMODE_DEFAULT}
    return driver


@pytest.mark.parametrize(
    ("version", "message"),
    [("535.183.01", "driver 535.183.01 is too old"), ("595.71.05", r"can't use any: no kernel module; correct it")],
)
def test_gpus_that_the_management_library_counts_may_be_unusable(
    cards: Driver, monkeypatch: pytest.MonkeyPatch, version: str, message: str
) -> None:
    """PYTORCH_NVML_BASED_CUDA_CHECK makes `is_available` such a count."""

    def fail() -> None:
        raise RuntimeError("no kernel module\nand more lines")

    cards.version = version
    monkeypatch.setattr(torch.cuda, "init", fail)
    with pytest.raises(UserError, match=message):
        find_devices(Config(site_ids=(0, 1)), [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # which the management library doesn't read
    with pytest.raises(UserError, match=r"cuda:0: PyTorch .* can't use it: no kernel module; correct it, or site_ids"):
        find_devices(Config(site_ids=(0, 1)), [])


def test_a_process_without_gpus_may_be_forked_from_any(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    driver.count = 0
    assert find_devices(Config(site_ids=(0,)), []) == ("cpu",)


@pytest.mark.parametrize(
    ("capability", "built", "works"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((8, 9), ["sm_75", "sm_80", "sm_90"], True),  # code for 8.0 runs on 8.9
        ((10, 0), ["sm_80", "sm_90a"], False),
        ((10, 0), ["sm_80", "compute_90"], True),  # compiled by the driver
        ((7, 5), ["sm_80", "compute_90"], False),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 0), ["sm_75", "sm_120"], True),
        ((12, 0), ["sm_75", "sm_121"], False),
        ((3, 5), [], True),  # torch doesn't say
    ],
)
def test_a_card_that_torch_has_no_code_for_is_refused(
    cards: Driver, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], works: bool
) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: capability if str(device) == "cuda:1" else (8, 0)
    )
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    config = Config(site_ids=(1,), precision="fp32")
    if works:
        assert find_devices(config, []) == ("cuda:1",)
        return
    of_card = rf"cuda:1: an accelerator has compute capability {capability[0]}\.{capability[1]}, and PyTorch"
    with pytest.raises(UserError, match=of_card):
        find_devices(config, [])


def test_a_card_for_one_process_takes_one_site_unless_mps_serves_it(cards: Driver, tmp_path: Path) -> None:
    cards.modes["GPU-of-cuda:1"] = pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS
    assert find_devices(Config(site_ids=(0, 1, 0)), []) == ("cuda:0", "cuda:1", "cuda:0")
    message = r"cuda:1: 2 entries of site_ids share it, .* start MPS .*nvidia-smi -i GPU-of-cuda:1 -c DEFAULT"
    with pytest.raises(UserError, match=message):
        find_devices(Config(site_ids=(0, 1, 1)), [])
    (tmp_path / "control").touch()
    assert find_devices(Config(site_ids=(0, 1, 1)), []) == ("cuda:0", "cuda:1", "cuda:1")
    cards.modes["GPU-of-cuda:0"] = pynvml.NVML_COMPUTEMODE_PROHIBITED
    with pytest.raises(UserError, match="cuda:0: its compute mode admits no process"):
        find_devices(Config(site_ids=(0,)), [])
    assert cards.opened == 0


def test_a_part_of_a_card_has_no_compute_mode(cards: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uuid: str) -> Any:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", unknown)
    assert find_devices(Config(site_ids=(0, 0)), []) == ("cuda:0", "cuda:0")


def test_how_kernels_of_several_processes_overlap_is_noted(cards: Driver, tmp_path: Path) -> None:
    notes: list[str] = []
    find_devices(Config(site_ids=(0, 1)), notes)
    assert notes == []
    find_devices(Config(site_ids=(0, 0)), notes)
    assert [note.partition(":")[0] for note in notes] == [
        "several processes share a GPU, and without MPS their kernels take turns"
    ]
    (tmp_path / "control").touch()
    more: list[str] = []
    find_devices(Config(site_ids=(0, 0)), more)
    assert more == []


def test_a_process_that_was_forked_after_cuda_began_is_refused(cards: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(UserError, match=r"CUDA is in use in the process that the sites are forked from.*flash-attn"):
        find_devices(Config(site_ids=(0,)), [])
    assert find_devices(Config(site_ids=(-1,)), []) == ("cpu",), "the CPU is always there"
    with pytest.raises(UserError, match="CUDA is in use in the process that the sites are forked from"):
        gpus.set_up(torch.device("cuda:0"), Config())
    gpus.set_up(torch.device("cpu"), Config())


def test_a_model_is_evaluated_on_a_gpu_that_is_there(cards: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job's own configuration may name more GPUs than this machine has."""
    devices = [trained_model._device(Config(site_ids=entries)) for entries in ((1, 0), (0,), (5,), (-1, -1))]
    assert devices == ["cuda:1", "cuda:0", "cuda:0", "cpu"]
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    with pytest.raises(UserError, match="CUDA is in use in the process"):
        trained_model._device(Config(site_ids=(0,)))


def test_the_default_place_of_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    assert gpus.mps_is_running() == os.path.exists("/tmp/nvidia-mps/control")


def test_deterministic_algorithms_are_chosen_before_the_gpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        monkeypatch.setattr(transformers.masking_utils, name, getattr(transformers.masking_utils, name))
    seen: list[tuple[bool, bool]] = []
    switches = torch.backends.cuda
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(
        torch.cuda, "set_device",
        lambda device: seen.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ)),
    )  # fmt: skip
    before = (switches.mem_efficient_sdp_enabled(), switches.cudnn_sdp_enabled())
    try:
        gpus.set_up(torch.device("cuda:0"), Config())
        assert switches.mem_efficient_sdp_enabled()
        assert not switches.cudnn_sdp_enabled()
        gpus.set_up(torch.device("cuda:0"), Config(deterministic=True))
        assert not switches.mem_efficient_sdp_enabled()
        assert seen == [(False, False), (True, True)]
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        switches.enable_mem_efficient_sdp(before[0])
        switches.enable_cudnn_sdp(before[1])


def test_a_package_that_starts_cuda_in_the_fork_server_is_found_out(tmp_path: Path) -> None:
    """The stand-in poisons every process that is forked after torch was imported, as a CUDA context does."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def poison():\n"
        "    if 'torch' in sys.modules:\n"
        "        cuda = sys.modules['torch'].cuda\n"
        "        cuda._is_in_bad_fork = cuda.is_available = lambda: True\n"
        "        cuda.device_count = lambda: 4\n"
        "os.register_at_fork(after_in_child=poison)\n"
    )
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "train_federated.py", "with", "demo", "job_name=poisoned"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Refused: CUDA is in use in the process that the sites are forked from" in done.stderr
    assert not (tmp_path / "runs").exists()
