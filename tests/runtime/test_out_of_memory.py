"""Errors of allocations, in the user's terms."""

import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.errors import OutOfMemory, UserError
from scaling_fl.runtime import coordinator, out_of_memory

# As torch says it.
ON_GPU = (
    "CUDA out of memory. Tried to allocate 2.34 GiB. GPU 1 has a total capacity of 79.11 GiB of which 1.20 GiB is free. "
    "Including non-PyTorch memory, this process has 77.90 GiB memory in use."
)


def explained(error: Exception, config: Config, device: str = "cuda:1") -> str:
    with pytest.raises(OutOfMemory) as refusal, out_of_memory.explained(config, device):
        raise error
    return str(refusal.value)


def test_what_was_needed_and_what_needs_less_is_named() -> None:
    error = torch.OutOfMemoryError(ON_GPU)
    error.add_note("at site 3, in round 7")
    large = Config(site_ids=(1, 1), batch_size=16, max_seq_len=200, gradient_accumulation_steps=3)
    assert explained(error, large) == (
        "cuda:1: out of memory at site 3, in round 7; 2.34 GiB more were needed, of a total capacity of 79.11 GiB; set "
        "gradient_accumulation_steps=6, which splits each batch of 16, or set gradient_checkpointing=True, or lower "
        "batch_size=16 or max_seq_len=200, or name each GPU less often in site_ids"
    )
    small = Config(site_ids=(1,), batch_size=4, gradient_accumulation_steps=4, gradient_checkpointing=True)
    assert explained(torch.OutOfMemoryError("CUDA out of memory."), small) == (
        "cuda:1: out of memory; lower batch_size=4 or max_seq_len=128"
    )


def test_the_error_of_an_allocation_on_the_cpu_is_explained_as_well() -> None:
    with (
        pytest.raises(
            UserError, match=r"^cpu: out of memory; 4611686018427387904 bytes more were needed; .*fewer site_ids"
        ),
        out_of_memory.explained(Config(site_ids=(-1, -1)), "cpu", UserError),
    ):
        torch.empty(2**60)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("NCCL error: unhandled cuda error, Failed to CUDA calloc 1048576 bytes"),
    ],
    ids=str,
)
def test_libraries_on_a_gpu_say_it_in_their_own_words(error: RuntimeError) -> None:
    assert explained(error, Config(site_ids=(1,))).startswith(
        "cuda:1: out of memory; set gradient_accumulation_steps=2"
    )


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match=r"^size mismatch$"), out_of_memory.explained(Config(), "cpu"):
        raise RuntimeError("size mismatch")


def test_a_snapshot_is_pageable_where_memory_cannot_be_pinned() -> None:
    """Nor can it on a machine without a GPU."""
    found = coordinator._reserve((2, 3), pinned=True)
    assert (tuple(found.shape), found.dtype) == ((2, 3), torch.float32)
    assert found.is_pinned() == torch.cuda.is_available()
    assert tuple(coordinator._reserve((0,), pinned=False).shape) == (0,)
