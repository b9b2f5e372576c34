"""Tensors that nobody changes, once on each GPU for all its workers: the weights that `trainable` freezes."""

from collections.abc import Mapping

import torch

from scaling_fl.distributed.collectives import Collectives

_ALIGNMENT = 256  # bytes, as CUDA's own allocations


def share(
    collectives: Collectives, tensors: Mapping[str, torch.Tensor], device: torch.device
) -> tuple[dict[str, torch.Tensor], bool]:
    """Return `tensors` on the GPU `device`, and whether its workers share them; if that isn't permitted, each has its own.

    All workers must call this with the same tensors.
    """
    if not tensors:
        return {}, True
    starts, size = dict[str, int](), 0
    for name, tensor in tensors.items():
        starts[name] = size
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    memory = collectives.gpu_memory((1, size // 4))
    if memory is None:
        return {name: tensor.to(device) for name, tensor in tensors.items()}, False
    found, values = dict[str, torch.Tensor](), memory.view(torch.uint8).flatten()
    for name, tensor in tensors.items():
        part = values[starts[name] : starts[name] + tensor.nbytes]
        found[name] = part.view(tensor.dtype).view(tensor.shape)
        if collectives.is_first_on_device:
            found[name].copy_(tensor)
    collectives.barrier()  # none computes with weights that aren't there yet
    return found, True
