"""The machine's GPUs, as the driver and torch see them: what can't work is refused before anything starts."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pynvml
import torch

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import masks

_OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}  # by the major version of the CUDA that torch is built with
_INDEX = "https://download.pytorch.org/whl/"
_ON_CPU = "site_ids=[-1,-1] trains two sites on the CPU"


def check_fork() -> None:
    """Raise `UserError` if CUDA was in use when this process was forked: then it can't use CUDA itself."""
    if torch.cuda._is_in_bad_fork():
        raise UserError(
            "CUDA is in use in the process that the sites are forked from, so they can't use a GPU: a package that "
            "transformers, peft or torch imports has started CUDA, such as flash-attn or xformers; uninstall the package, or "
            f"{_ON_CPU}"
        )


def check_visible() -> None:
    """Raise `UserError` if the driver has GPUs although torch finds none, unless CUDA_VISIBLE_DEVICES hides them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return
    with _driver() as found:
        if not found or (count := pynvml.nvmlDeviceGetCount()) == 0:
            return
        version = pynvml.nvmlSystemGetDriverVersion()
    gpus = "a GPU" if count == 1 else f"{count} GPUs"
    build = f"PyTorch {torch.__version__}"
    if torch.version.cuda is None:
        raise UserError(
            f"this machine has {gpus}, and {build} is built without CUDA; install a build with CUDA, such as "
            f"TORCH_INDEX={_INDEX}cu130 ./run-local.sh …, or {_ON_CPU}"
        )
    oldest = _OLDEST_DRIVERS.get(int(torch.version.cuda.split(".")[0]), 0)
    if int(version.split(".")[0]) < oldest:
        raise UserError(
            f"this machine has {gpus}, and its driver {version} is too old: {build} with CUDA {torch.version.cuda} needs "
            f"{oldest} or later; update the driver, install a build for an older CUDA, such as TORCH_INDEX={_INDEX}cu126 "
            f"./run-local.sh …, or {_ON_CPU}"
        )
    raise UserError(
        f"this machine has {gpus} (driver {version}), but {build} with CUDA {torch.version.cuda} can't use any: "
        f"{_reason() or 'torch.cuda.is_available() is False'}; correct it, or {_ON_CPU}"
    )


def check(devices: Sequence[str]) -> None:
    """Raise `UserError` if torch can't use one of `devices`, such as "cuda:0", or if it admits too few processes."""
    if reason := _reason():  # the driver's library counted them, which says nothing about the driver's age
        check_visible()
        raise UserError(f"{devices[0]}: PyTorch {torch.__version__} can't use it: {reason}; correct it, or {_ON_CPU}")
    for device, count in Counter(devices).items():
        _check_architecture(device)
        _check_compute_mode(device, count)


def set_up(device: torch.device, config: Config) -> None:
    """Settings of a process that trains on a GPU, before anything else uses the GPU there. A CPU needs none."""
    if device.type != "cuda":
        return
    check_fork()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # nothing reads memory that it hasn't written
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass sums in any order
    torch.cuda.set_device(device)
    masks.disable_inspection()
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    # cuDNN's attention makes a plan for each new shape of batches in each process, which takes as long as many steps.
    torch.backends.cuda.enable_cudnn_sdp(False)


def mps_is_running() -> bool:
    """Whether NVIDIA's Multi-Process Service is there, which lets kernels of several processes run at once."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def _check_architecture(device: str) -> None:
    major, minor = torch.cuda.get_device_capability(device)
    known = [entry.partition("_")[::2] for entry in torch.cuda.get_arch_list()]  # ("sm", "90"), ("compute", "120") …
    numbers = [(kind, divmod(int(number.rstrip("af")), 10)) for kind, number in known]
    works = any(
        (of_major == major and of_minor <= minor) if kind == "sm" else (of_major, of_minor) <= (major, minor)
        for kind, (of_major, of_minor) in numbers
    )
    if known and not works:
        oldest = min(number for _, number in numbers)
        raise UserError(
            f"{device}: {torch.cuda.get_device_name(device)} has compute capability {major}.{minor}, and PyTorch "
            f"{torch.__version__} has code for {oldest[0]}.{oldest[1]} and later; install a build that has it, such as "
            f"TORCH_INDEX={_INDEX}cu126 ./run-local.sh …, or {_ON_CPU}"
        )


def _check_compute_mode(device: str, num_processes: int) -> None:
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    mode = pynvml.NVML_COMPUTEMODE_DEFAULT
    with _driver() as found, contextlib.suppress(pynvml.NVMLError):  # a part of a GPU (MIG) has none
        if found:
            mode = pynvml.nvmlDeviceGetComputeMode(pynvml.nvmlDeviceGetHandleByUUID(uuid))
    remedy = f"nvidia-smi -i {uuid} -c DEFAULT"
    if mode == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        raise UserError(f"{device}: its compute mode admits no process; set it otherwise: {remedy}")
    if mode == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS and num_processes > 1 and not mps_is_running():
        raise UserError(
            f"{device}: {num_processes} entries of site_ids share it, and its compute mode admits one process; start MPS "
            f"(nvidia-cuda-mps-control -d), change the mode ({remedy}), or name each GPU once"
        )


@contextlib.contextmanager
def _driver() -> Iterator[bool]:
    """Open NVIDIA's management library; yields whether there is one."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _reason() -> str:
    """Why torch can't use CUDA, in its own words; empty if it can."""
    try:
        initialise: Any = torch.cuda.init
        initialise()
    except Exception as error:  # torch raises several kinds
        return str(error).strip().split("\n")[0]
    return ""
