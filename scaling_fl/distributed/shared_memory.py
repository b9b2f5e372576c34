"""Memory that the launcher hands to its workers. It has no name, so that no crash can leave it behind."""

import mmap
import multiprocessing.reduction
import os
import re
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl.errors import UserError


class SharedMemory:
    """An anonymous file in memory. Pickling it to a child process hands the file over; the last holder frees it."""

    def __init__(self, descriptor: int | None = None):
        if descriptor is None:
            if hasattr(os, "memfd_create"):  # not limited by the size of /dev/shm, unlike a file in it
                descriptor = os.memfd_create("scaling_fl")
            else:
                with tempfile.TemporaryFile() as file:
                    descriptor = os.dup(file.fileno())
        self.descriptor = descriptor

    def __reduce__(self) -> Any:
        return _attach, (multiprocessing.reduction.DupFd(self.descriptor),)

    def floats(self, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """The memory as (rows, columns) float32, zero at first. Every process asks for the same shape.

        Raises `UserError` where the machine hasn't so much memory.
        """
        size = rows * columns * 4
        available = _available()
        if size > available:  # said here, rather than by the system's out-of-memory killer
            raise UserError(
                f"{size / 2**30:.2f} GiB of shared memory are needed, {available / 2**30:.2f} GiB of memory are free; "
                "use fewer site_ids, a smaller model, or a machine with more memory"
            )
        os.ftruncate(self.descriptor, size)
        return np.frombuffer(mmap.mmap(self.descriptor, size), np.float32).reshape(rows, columns)

    def close(self) -> None:
        """Let go of it in this process."""
        os.close(self.descriptor)


def _available() -> float:
    """Bytes of memory that can be had, where the system tells."""
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except OSError:  # not Linux
        return float("inf")


def nccl_shared_memory_shortage(message: str, place: str = "/dev/shm") -> str:
    """What to do, if this error is NCCL's that `place` has no room for what passes between GPUs; empty for others.

    A container has 64 MB there unless told otherwise, and NCCL takes some 10 MB for each pair of GPUs and each of its
    channels.
    """
    wanted = re.search(r"shared memory segment \S+ \(size (\d+)\)", message)
    if wanted is None:
        return ""
    found = os.statvfs(place)
    total, free = (found.f_frsize * count / 2**20 for count in (found.f_blocks, found.f_bavail))
    return (
        f"NCCL can't get {int(wanted[1]) / 2**20:.1f} MiB for the traffic between GPUs: {place} has {total:.0f} MiB, "
        f"{free:.0f} MiB of them free, and 1024 MiB are enough; SHM_SIZE=1g with run-local.sh, `docker run --shm-size 1g`, on "
        f"Kubernetes a volume (emptyDir, medium: Memory) at {place}; or do without it, slower: NCCL_SHM_DISABLE=1"
    )


def _attach(descriptor: Any) -> SharedMemory:
    return SharedMemory(descriptor.detach())
