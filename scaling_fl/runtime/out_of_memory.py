"""Out of memory, in the user's terms: what was needed, and which keys need less."""

import contextlib
import re
from collections.abc import Iterator

import torch

from scaling_fl.config.schema import Config
from scaling_fl.errors import JobFailed, OutOfMemory, UserError

# torch's words: "Tried to allocate 2.00 GiB. GPU 0 has …" on GPUs, "you tried to allocate 400 bytes" on CPUs.
_TRIED = re.compile(
    r"tried to allocate ([\d.]+ \w+)(?:\. GPU \d+ has a (total capacity of [\d.]+ \w+))?", re.IGNORECASE
)
# In the errors of torch's CPU allocator, of CUDA (a process that starts on a full GPU), of cuBLAS, and of NCCL.
_SIGNS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "Failed to CUDA calloc")


@contextlib.contextmanager
def explained(config: Config, device: str, kind: type[UserError] | type[JobFailed] = OutOfMemory) -> Iterator[None]:
    """Raise an error of the class `kind` in the place of that of torch's allocators."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)):
            raise
        found = _TRIED.search(str(error))
        wanted = f"; {found[1]} more were needed{f', of a {found[2]}' if found[2] else ''}" if found else ""
        where = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        raise kind(f"{device}: out of memory{where}{wanted}; {_remedy(config, device)}") from error


def _remedy(config: Config, device: str) -> str:
    steps = config.gradient_accumulation_steps
    smaller = []
    if steps < config.batch_size:
        smaller.append(f"set gradient_accumulation_steps={2 * steps}, which splits each batch of {config.batch_size}")
    if not config.gradient_checkpointing:
        smaller.append("set gradient_checkpointing=True")
    smaller.append(f"lower batch_size={config.batch_size} or max_seq_len={config.max_seq_len}")
    if len(config.site_ids) > 1:
        smaller.append("name fewer site_ids" if device == "cpu" else "name each GPU less often in site_ids")
    return ", or ".join(smaller)
