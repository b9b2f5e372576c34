"""The base: weights that `trainable` freezes. They aren't in the flat buffer, so they neither travel nor stand in checkpoints.

Workers map them from one file of the job's work folder: on the CPU, all workers of a machine share its pages.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from scaling_fl.config.schema import Config
from scaling_fl.models import adapters, four_bit
from scaling_fl.models.selection import select

_FILE = "base.safetensors"


def freeze(module: Any, config: Config, new_parameters: Collection[str] = ()) -> None:
    """Freeze all parameters but those that `trainable` selects. Raises `UserError` if it selects none.

    They become the base of `module`, but for `new_parameters`: no pre-trained weights have these, so checkpoints must.
    `trainable=lora` adds the adapters, and selects them and the head.
    """
    if config.trainable == "all":
        return
    candidates = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if config.trainable == "lora":
        adapters.add(module, config, new_parameters)
        candidates = [name for name in dict(module.named_parameters()) if adapters.plain_name(name) in candidates]
        frozen = {name for name in candidates if not module.get_parameter(name).requires_grad}
    else:
        frozen = set(candidates) - set(select("trainable", config.trainable, candidates, module.base_model_prefix))
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    everything_new = list(new_parameters) == ["all"]  # model=tiny
    module.base_names = frozenset() if everything_new else frozenset(frozen - set(new_parameters))


def arrays(module: Any) -> dict[str, npt.NDArray[np.generic]]:
    """The base by tensor name, on the CPU."""
    parameters = dict(module.named_parameters())
    return {name: parameters[name].detach().cpu().numpy() for name in sorted(getattr(module, "base_names", ()))}


def convert(module: Any, config: Config) -> None:
    """Give the base of `module` the values that `base_precision` can hold."""
    quantised = four_bit.names(module) if config.base_precision == "nf4" else set[str]()
    for name in getattr(module, "base_names", ()):
        parameter = module.get_parameter(name)
        parameter.data = four_bit.rounded(parameter.data) if name in quantised else _stored(parameter.data, config)


def _stored(tensor: torch.Tensor, config: Config) -> torch.Tensor:
    """Vectors stay in float32: they take no memory to speak of."""
    return tensor.bfloat16() if config.base_precision == "bf16" and tensor.ndim >= 2 else tensor


def write(folder: Path, module: Any, config: Config) -> None:
    """Write the base of `module` to the work folder in the precision `base_precision`, for `attach`."""
    quantised = four_bit.names(module) if config.base_precision == "nf4" else set[str]()
    tensors = dict[str, torch.Tensor]()
    for name, array in arrays(module).items():
        tensor = torch.from_numpy(array)
        tensors |= four_bit.tensors(name, tensor) if name in quantised else {name: _stored(tensor, config)}
    safetensors.torch.save_file(tensors, folder / _FILE)


def attach(folder: Path, module: Any, config: Config, new_parameters: Collection[str] = ()) -> None:
    """Freeze the base of `module`, which `rebuild_model` built, and give it the values that `write` wrote."""
    freeze(module, config, new_parameters)
    if config.trainable == "all":
        return
    stored = safetensors.torch.load_file(folder / _FILE)
    if config.base_precision == "nf4":
        four_bit.attach(module, stored)
    parameters = dict(module.named_parameters())
    for name, tensor in stored.items():
        if name in parameters and parameters[name].dtype != torch.uint8:
            parameters[name].data = tensor.to(parameters[name].device)


def tensors(module: Any) -> dict[str, torch.Tensor]:
    """The tensors that hold the base after `attach`, by name. Their `data` may be put elsewhere."""
    found = {name: module.get_parameter(name) for name in sorted(getattr(module, "base_names", ()))}
    return found | four_bit.scales(module)
