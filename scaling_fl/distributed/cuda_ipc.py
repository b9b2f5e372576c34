"""GPU memory shared between processes by CUDA IPC handles, and pinned host memory.

Calls the driver itself: torch's reference-counted handles leave a file behind if a process is killed. What is allocated
or attached here stays until it is released or the process ends.
"""

import ctypes
from typing import Any

import torch

from scaling_fl.errors import UserError

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_BLOCK = 2**21  # bytes: smaller allocations share a block, and a handle would pass on the whole block
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag there is


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class NotPermitted(Exception):
    """CUDA refuses to share memory between processes; the message is the driver's."""


def allocate(shape: tuple[int, ...], device: torch.device) -> tuple[torch.Tensor, bytes]:
    """Allocate zeroed float32 memory on the GPU; return it with the handle that other processes attach it by.

    Raises `UserError` if the GPU has too little free memory, `NotPermitted` if memory can't be shared.
    """
    ensure_context(device)
    pointer, handle = ctypes.c_uint64(), _Handle()
    size = -(-4 * torch.Size(shape).numel() // _BLOCK) * _BLOCK
    code = _driver().cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
    if code == _OUT_OF_MEMORY:
        free = torch.cuda.mem_get_info(device)[0]
        raise UserError(
            f"{device}: {free / 2**30:.2f} GiB are free, its sites' parameters need {size / 2**30:.2f} GiB; use fewer sites "
            "per GPU or a smaller model"
        )
    _check(code)
    try:
        _check(_driver().cuIpcGetMemHandle(ctypes.byref(handle), pointer))
    except NotPermitted:
        _driver().cuMemFree_v2(pointer)
        raise
    memory = _tensor(pointer, shape, device).zero_()
    torch.cuda.synchronize(device)  # zeroed before another process writes to it
    return memory, bytes(handle)


def attach(handle: bytes, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Map memory that another process allocated. Raises `NotPermitted` if CUDA refuses."""
    ensure_context(device)
    pointer = ctypes.c_uint64()
    _check(
        _driver().cuIpcOpenMemHandle_v2(
            ctypes.byref(pointer), _Handle.from_buffer_copy(handle), ctypes.c_uint(_LAZY_PEER_ACCESS)
        )
    )
    return _tensor(pointer, shape, device)


def release(memory: torch.Tensor, allocated: bool) -> None:
    """Free or unmap memory, which must not be used any more."""
    pointer = ctypes.c_uint64(memory.data_ptr())
    (_driver().cuMemFree_v2 if allocated else _driver().cuIpcCloseMemHandle)(pointer)


def pin(memory: torch.Tensor, device: torch.device) -> bool:
    """Pin host memory, for faster copies to and from the GPU. Returns False if that is not permitted."""
    ensure_context(device)
    size = ctypes.c_size_t(memory.numel() * memory.element_size())
    code: int = _driver().cuMemHostRegister_v2(ctypes.c_void_p(memory.data_ptr()), size, ctypes.c_uint(0))
    return code == 0


def ensure_context(device: torch.device) -> None:
    """Select the GPU and create its CUDA context, which driver calls need."""
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)


class _Array:
    """Presents a raw pointer to torch without copying."""

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
