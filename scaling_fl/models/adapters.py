"""LoRA adapters (Hu et al. 2021): W x becomes W x + (alpha / rank) B A x. W is frozen; A and B are trained. By peft.

The adapters stand inside the model's own class: nothing else of the program knows of them. B starts at 0, so the adapted
model starts as the pre-trained one.
"""

import copy
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models.aliases import hub_id
from scaling_fl.models.loading import predicts_tokens

MATRIX_A, MATRIX_B = ".lora_A.", ".lora_B."  # in the names of tensors
_NAME = "default"  # peft's name of a model's only adapter
_INFIX = f".{_NAME}."  # in the names of A and B
_BASE = ".base_layer."  # in the names of the layers that have adapters


def add(module: Any, config: Config, new_parameters: Collection[str]) -> None:
    """Put adapters beside the layers of `module` that `lora_targets` selects. Only they and the head can be trained then.

    The head of a classifier is what lies outside the base model, and the layers of `new_parameters`: random weights that
    stay as they are would be of no use. Raises `UserError` if nothing is selected.
    """
    from peft import LoraConfig, inject_adapter_in_model

    language_model = predicts_tokens(module)
    head = [] if language_model else _head(module, new_parameters)
    targets = config.lora_targets
    if targets != "all-linear":
        try:
            targets = re.compile(f".*({targets}).*").pattern
        except re.error as error:
            raise UserError(
                f"lora_targets={config.lora_targets}: not a regular expression ({error}); write all-linear, or a part of "
                "the layers' names such as query|value"
            ) from error
    alpha = 2 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=alpha, lora_dropout=config.lora_dropout, target_modules=targets,
        exclude_modules=head or None, base_model_name_or_path=hub_id(config.model),
        task_type="CAUSAL_LM" if language_model else "SEQ_CLS",
    )  # fmt: skip
    linear = {name.rpartition(".")[2] for name, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    layers = f"the model's linear layers are {', '.join(sorted(linear))}"
    torch.manual_seed(seeding.torch_seed(config.seed, "lora"))
    try:
        inject_adapter_in_model(lora, module, _NAME)
    except ValueError as error:  # no layer has such a name, or one is of a kind that can't be adapted
        raise UserError(
            f"lora_targets={config.lora_targets}: selects no layers that can have adapters; {layers}"
        ) from error
    # Their matrices have other names, and the output layer may share their table.
    if tables := sorted(
        {name.partition(".lora_embedding_")[0] for name in names(module) if ".lora_embedding_" in name}
    ):
        raise UserError(f"lora_targets={config.lora_targets}: selects {tables[0]}, a table of embeddings; {layers}")
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[0] in head:
            parameter.requires_grad_(True)
        if config.lora_aggregation == "freeze_a" and MATRIX_A in name:
            parameter.requires_grad_(False)


def names(module: Any) -> set[str]:
    """The names of all A and B."""
    return {name for name, _ in module.named_parameters() if _is_adapter(name)}


def has(module: Any) -> bool:
    """Whether the module has adapters."""
    return getattr(module, "peft_config", None) is not None


def on_output(module: Any) -> bool:
    """Whether the layer that predicts tokens has adapters: merged, it is no longer the table of the input's embeddings."""
    from peft.tuners.lora import LoraLayer

    return predicts_tokens(module) and isinstance(module.get_output_embeddings(), LoraLayer)


@torch.no_grad()
def merged(module: Any) -> dict[str, torch.Tensor]:
    """The state of the model without adapters that computes the same, by tensor name: W + (alpha / rank) B A."""
    from peft.tuners.lora import LoraLayer

    state = {plain_name(name): tensor for name, tensor in module.state_dict().items() if not _is_adapter(name)}
    for name, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_NAME)
    return state


def save(module: Any, folder: Path) -> None:
    """Write adapters and head as peft does, for `PeftModel.from_pretrained(base, folder)`."""
    head = {name for name, parameter in module.named_parameters() if parameter.requires_grad} - names(module)
    lora = copy.copy(module.peft_config[_NAME])
    lora.inference_mode = True
    lora.modules_to_save = sorted({name.rpartition(".")[0] for name in head})
    if not isinstance(lora.target_modules, str):
        lora.target_modules = sorted(lora.target_modules)  # it is a set
    lora.save_pretrained(folder)
    state = module.state_dict()
    tensors = {
        f"base_model.model.{name.replace(_INFIX, '.')}": state[name].cpu().contiguous()
        for name in sorted(head | names(module))
    }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def plain_name(name: str) -> str:
    """The name of a tensor of the model without adapters."""
    return name.replace(_BASE, ".")


def _head(module: Any, new_parameters: Collection[str]) -> list[str]:
    """The names of the layers that are trained whole."""
    prefix = f"{module.base_model_prefix}."
    new = set() if list(new_parameters) == ["all"] else set(new_parameters)  # model=tiny
    whole = [name for name, _ in module.named_parameters() if not name.startswith(prefix) or name in new]
    return sorted({name.rpartition(".")[0] for name in whole})


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
