"""Where models run: the device of each entry of `site_ids`, and the cores of this machine."""

import contextlib
import os

import torch

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import gpus


def find_devices(config: Config, notes: list[str]) -> tuple[str, ...]:
    """The torch device of each entry of `site_ids`. Raises `UserError` if a GPU is missing or unusable, or if they differ."""
    if (config.threads_per_site or 0) > (cores := num_cores()):
        notes.append(
            f"threads_per_site={config.threads_per_site}: this machine has {cores} cores; more threads than cores slow "
            "training down"
        )
    if -1 in config.site_ids:
        return ("cpu",) * len(config.site_ids)
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus == 0:
        gpus.check_visible()
        notes.append("this machine has no GPU that torch can use: the sites run on the CPU")
        return ("cpu",) * len(config.site_ids)
    gpus.check_fork()
    if max(config.site_ids) >= num_gpus:
        raise UserError(
            f"site_ids={list(config.site_ids)}: there is no GPU {max(config.site_ids)}; "
            f"this machine has GPUs 0 to {num_gpus - 1}; correct site_ids"
        )
    found = tuple(f"cuda:{index}" for index in config.site_ids)
    gpus.check(found)
    if config.precision == "auto" and len({torch.cuda.get_device_capability(device) >= (8, 0) for device in found}) > 1:
        raise UserError("precision=auto: some of these GPUs have bf16, others don't; set precision=fp32, bf16 or fp16")
    if len(set(found)) < len(found) and not gpus.mps_is_running():
        notes.append(
            "several processes share a GPU, and without MPS their kernels take turns: `nvidia-cuda-mps-control -d` before the "
            "job starts it, `echo quit | nvidia-cuda-mps-control` ends it"
        )
    return found


def num_cores() -> int:
    with contextlib.suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
