"""GPU memory that several processes see, by CUDA's interprocess handles, and host memory that a GPU reads fast.

The driver's own functions, not torch's reference-counted handles: those leave a file behind where a process is killed.
What is allocated or opened here stays until the process ends.
"""

import ctypes
from typing import Any

import torch

from scaling_fl.errors import UserError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class NotPermitted(Exception):
    """CUDA refuses to share memory between processes here; the message is its own."""


def allocate(shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, bytes]:
    """New float32 memory of the GPU, zeroed, and the handle with which other processes open it.

    Raises `UserError` if the GPU hasn't so much memory, `NotPermitted` where memory can't be shared.
    """
    torch.zeros(1, device=device)  # there is a context now, and it is current
    pointer, handle = ctypes.c_uint64(), _Handle()
    size = 4 * torch.Size(shape).numel()
    code = _driver().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
    if code == _OUT_OF_MEMORY:
        free = torch.cuda.mem_get_info(device)[0]
        raise UserError(
            f"{device}: {size / 2**30:.2f} GiB are needed for its sites' parameters, {free / 2**30:.2f} GiB are free; "
            "use fewer sites per GPU, or a smaller model"
        )
    _check(code)
    _check(_driver().cuIpcGetMemHandle(ctypes.byref(handle), pointer))
    return _tensor(pointer, shape, device).zero_(), bytes(handle)


def attach(handle: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """The memory that another process allocated. Raises `NotPermitted` where CUDA refuses that."""
    torch.zeros(1, device=device)
    pointer = ctypes.c_uint64()
    _check(
        _driver().cuIpcOpenMemHandle_v2(
            ctypes.byref(pointer), _Handle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS)
        )
    )
    return _tensor(pointer, shape, device)


def pin(memory: torch.Tensor) -> None:
    """Lock this process's view of host memory in place, where that is permitted: GPUs copy from and to it faster."""
    size = memory.numel() * memory.element_size()
    _driver().cuMemHostRegister_v2(ctypes.c_void_p(memory.data_ptr()), ctypes.c_size_t(size), ctypes.c_uint(0))


class _Array:
    """A pointer in the form that torch takes without a copy."""

    def __init__(self, pointer: int, shape: tuple[int, ...]):
        self.__cuda_array_interface__ = {"data": (pointer, False), "shape": shape, "typestr": "<f4", "version": 3}


def _tensor(pointer: ctypes.c_uint64, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(_Array(pointer.value, shape), device=device)


def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


def _check(code: int) -> None:
    if code != 0:
        message = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(message))
        raise NotPermitted((message.value or b"CUDA error %d" % code).decode())
