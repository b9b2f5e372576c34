"""The machine's devices, cores and compiler, and the versions that bitwise equality depends on."""

import contextlib
import os
import platform
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers

from scaling_fl.config.partition_keys import chosen_partition
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.resident import precision
from scaling_fl.runtime import gpus


def environment(config: Config, devices: Sequence[str]) -> dict[str, str]:
    """The versions, processor and precision that bitwise equality depends on, besides the number of threads."""
    if devices[0].startswith("cuda"):
        processor = torch.cuda.get_device_name(devices[0])
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "processor": processor,
        "precision": precision(config, torch.device(devices[0])),
    }


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


def resolved(config: Config) -> dict[str, Any]:
    """All keys, with the values that unset and automatic ones would have on this machine."""
    keys = config.to_mapping()
    keys |= {"partition": chosen_partition(keys), "threads_per_site": threads_per_site(config)}
    if keys["partition"] != "column":  # which has a site for each value in the data
        keys["num_sites"] = config.all_sites
    with contextlib.suppress(UserError):  # the job is meant for another machine
        keys["precision"] = environment(config, find_devices(config, []))["precision"]
    return keys


def threads_per_site(config: Config) -> int:
    return config.threads_per_site or max(1, num_cores() // len(config.site_ids))


def check_compiler(device: str) -> None:
    """Raises `UserError` if torch.compile doesn't work on `device`."""
    try:
        torch.compile(lambda x: x.sin() + x.cos())(torch.ones(8, device=device))
    except Exception as error:  # each layer of the compiler stack raises its own exceptions
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"compile=True: torch can't compile for {device} ({type(error).__name__}: {reason}); install a C++ compiler "
            "and Python's headers (Debian: apt-get install g++ python3-dev), or leave it out"
        ) from error


def num_cores() -> int:
    with contextlib.suppress(AttributeError):  # Linux only
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
