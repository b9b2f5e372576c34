"""Shared memory that the launcher passes to its workers. It has no name, so that a crash leaves nothing behind."""

import mmap
import multiprocessing.reduction
import os
import re
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl import host
from scaling_fl.errors import UserError


class SharedMemory:
    """An anonymous in-memory file. Pickling passes it to a child process; the last process to close it frees it."""

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
        """Map the memory as (rows, columns) float32, initially zero. Every process must ask for the same shape.

        Raises `UserError` if the machine has too little free memory.
        """
        size = rows * columns * 4
        available = host.free_memory() + 512 * os.fstat(self.descriptor).st_blocks  # which other processes have filled
        if size > available:  # rather than leave it to the out-of-memory killer
            raise UserError(
                f"shared memory: {available / 2**30:.2f} GiB of memory are free, {size / 2**30:.2f} GiB are needed; "
                "use fewer site_ids, a smaller model, or a machine with more memory"
            )
        os.ftruncate(self.descriptor, size)
        return np.frombuffer(mmap.mmap(self.descriptor, size), np.float32).reshape(rows, columns)

    def close(self) -> None:
        """Close the file in this process; mapped views stay valid."""
        os.close(self.descriptor)


def nccl_shared_memory_shortage(message: str, place: str = "/dev/shm") -> str:
    """Return what to do if `message` is NCCL's error that `place` is too small; an empty string for other errors.

    Containers have 64 MB of /dev/shm by default. NCCL needs about 10 MB per pair of GPUs and channel.
    """
    wanted = re.search(r"shared memory segment \S+ \(size (\d+)\)", message)
    if wanted is None:
        return ""
    found = os.statvfs(place)
    total, free = (found.f_frsize * count / 2**20 for count in (found.f_blocks, found.f_bavail))
    return (
        f"NCCL can't allocate {int(wanted[1]) / 2**20:.1f} MiB for the traffic between GPUs: {place} has {total:.0f} MiB, "
        f"of which {free:.0f} MiB are free, expected 1024 MiB; set SHM_SIZE=1g with run-local.sh, --shm-size 1g with "
        f"`docker run`, or on Kubernetes mount a volume (emptyDir, medium: Memory) at {place}; or set "
        "NCCL_SHM_DISABLE=1, which is slower"
    )


def _attach(descriptor: Any) -> SharedMemory:
    return SharedMemory(descriptor.detach())
