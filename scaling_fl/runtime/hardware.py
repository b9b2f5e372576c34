"""The machine's devices, cores and compiler, and the versions that bitwise equality depends on."""

import contextlib
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
from scaling_fl.models.devices import find_devices, num_cores


def environment(config: Config, devices: Sequence[str]) -> dict[str, str]:
    """The versions, processor and precision that bitwise equality depends on, besides the number of threads."""
    if devices[0].startswith("cuda"):
        processor = torch.cuda.get_device_name(devices[0])
    else:
        processor = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # a class of torch, which the launcher would have to import
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "processor": processor,
        "precision": precision(config, torch.device(devices[0])),
    }


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
