"""LoRA adapters (Hu et al. 2021): W x becomes W x + (alpha / rank) B A x. W is frozen; A and B are trained. By peft.

The adapters stand inside the model's own class: nothing else of the program knows of them. B starts at 0, so the adapted
model starts as the pre-trained one.
"""

import copy
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.adapters import ADDING
from scaling_fl.errors import UserError
from scaling_fl.models import four_bit, memory
from scaling_fl.models.aliases import hub_id
from scaling_fl.models.loading import predicts_tokens
from scaling_fl.models.selection import select

_NAME = "default"  # peft's name of the adapters that are trained
_DELTA = "delta"  # … and of those that hold what aggregation adds to the base
MATRIX_A, MATRIX_B = f".lora_A.{_NAME}.", f".lora_B.{_NAME}."  # in the names of tensors
_BASE = ".base_layer."  # in the names of the layers that have adapters


def add(module: Any, config: Config, new_parameters: Collection[str]) -> None:
    """Put adapters beside the layers of `module` that `lora_targets` selects. Only they and the head can be trained then.

    The head of a classifier is what lies outside the base model, and the layers of `new_parameters`: random weights that
    stay as they are would be of no use. `modules_to_save` adds layers to it. Raises `UserError` if nothing is selected.
    """
    from scaling_fl.models import lean_lora  # isort: skip  # first: see `peft_alone`
    from peft import LoraConfig, inject_adapter_in_model

    language_model = predicts_tokens(module)
    head = sorted({*([] if language_model else _head(module, new_parameters)), *_saved(module, config)})
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
    for _, adapted in _layers(module):
        lean_lora.use(adapted)
    # Their matrices have other names, and the output layer may share their table.
    if tables := sorted(
        {name.partition(".lora_embedding_")[0] for name in names(module) if ".lora_embedding_" in name}
    ):
        raise UserError(f"lora_targets={config.lora_targets}: selects {tables[0]}, a table of embeddings; {layers}")
    if other := [name for name, layer in _layers(module) if layer.lora_A[_NAME].weight.ndim != 2]:
        raise UserError(f"lora_targets={config.lora_targets}: selects {other[0]}, which isn't a linear layer; {layers}")
    for layer in head:  # by the layer: tied weights have one name of several
        for parameter in module.get_submodule(layer).parameters(recurse=False):
            parameter.requires_grad_(True)
    for name, parameter in module.named_parameters():
        if config.lora_aggregation == "freeze_a" and MATRIX_A in name:
            parameter.requires_grad_(False)
    if config.lora_aggregation in ADDING:
        _add_delta(module, config)


@torch.no_grad()
def _add_delta(module: Any, config: Config) -> None:
    """Give each adapted layer a frozen second adapter, of scale 1: the delta that aggregation adds to its base weights.

    The delta is 0: its B is. With the rank of the weights themselves, its A is the identity, or the other way round: then
    the other matrix is the delta as it is, and nothing is cut off.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = dict(_layers(module))
    ranks = {
        name: min(layer.in_features, layer.out_features, config.lora_delta_rank or layer.in_features)
        for name, layer in layers.items()
    }
    count = sum(ranks[name] * (layer.in_features + layer.out_features) for name, layer in layers.items())
    memory.check(
        f"lora_aggregation={config.lora_aggregation}: what is added to the base has {count / 1e9:.2f} B values, which take",
        4 * count, "lower lora_delta_rank" if config.lora_delta_rank else f"set lora_delta_rank={8 * config.lora_rank}",
    )  # fmt: skip
    pattern = {re.escape(name): rank for name, rank in ranks.items()}
    lora = LoraConfig(target_modules=list(layers), rank_pattern=pattern, alpha_pattern=pattern)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there are two kinds of adapters now
        inject_adapter_in_model(lora, module, _DELTA)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad and not is_delta(name)}
    for layer in layers.values():
        layer.set_adapter([_NAME, _DELTA])
        a, b = layer.lora_A[_DELTA].weight, layer.lora_B[_DELTA].weight
        for matrix in (a, b):
            torch.nn.init.zeros_(matrix)
        if len(a) == min(layer.in_features, layer.out_features):
            torch.nn.init.eye_(a if len(a) == layer.in_features else b)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)


def delta_names(name: str) -> tuple[str, str]:
    """The names of A and B of the delta of the layer whose adapter has the A `name`."""
    a = name.replace(f".{_NAME}.", f".{_DELTA}.")
    return a, a.replace(".lora_A.", ".lora_B.")


def is_delta(name: str) -> bool:
    """Whether it is a tensor that holds what aggregation adds to the base."""
    return _is_adapter(name) and f".{_DELTA}." in name


def scale(config: Config) -> float:
    """B A counts as often."""
    return 2.0 if config.lora_alpha is None else config.lora_alpha / config.lora_rank


def names(module: Any) -> set[str]:
    """The names of all A and B."""
    return {name for name, _ in module.named_parameters() if _is_adapter(name)}


def has(module: Any) -> bool:
    """Whether the module has adapters."""
    return getattr(module, "peft_config", None) is not None


def on_output(module: Any) -> bool:
    """Whether the layer that predicts tokens has adapters: merged, it is no longer the table of the input's embeddings."""
    output = module.get_output_embeddings() if predicts_tokens(module) else None
    return any(layer is output for _, layer in _layers(module))


@torch.no_grad()
def merged(module: Any) -> dict[str, torch.Tensor]:
    """The state of the model without adapters that computes the same, by tensor name, on the CPU: W + (alpha / rank) B A."""
    packed = four_bit.weights(module)
    state = {
        plain_name(name): tensor.float().cpu()
        for name, tensor in module.state_dict().items()
        if not _is_adapter(name) and not name.startswith(tuple(packed))
    }
    state |= {plain_name(name): matrix for name, matrix in packed.items()}
    for name, layer in _layers(module):
        for adapter in layer.active_adapters:
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(adapter).cpu()
    return state


def save(module: Any, folder: Path) -> None:
    """Write adapters and head as peft does, for `PeftModel.from_pretrained(base, folder)`.

    Where aggregation adds to the base, the adapters hold that as well: their rank is the sum of both.
    """
    # Tied weights have several names, and peft ties none that it loads.
    everything = module.named_parameters(remove_duplicate=False)
    head = {name for name, parameter in everything if parameter.requires_grad} - names(module)
    lora = copy.copy(module.peft_config[_NAME])
    lora.inference_mode = True
    lora.modules_to_save = sorted({name.rpartition(".")[0] for name in head})
    if not isinstance(lora.target_modules, str):
        lora.target_modules = sorted(lora.target_modules)  # it is a set
    state = module.state_dict()
    tensors = {name: state[name] for name in head | names(module) if not is_delta(name)}
    if _DELTA in module.peft_config:
        tensors |= dict(_with_delta(module, state))
        ranks = {name: len(tensors[f"{name}{MATRIX_A}weight"]) for name, _ in _layers(module)}
        lora.rank_pattern = lora.alpha_pattern = {re.escape(name): rank for name, rank in ranks.items()}
    lora.save_pretrained(folder)
    saved = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": tensor.cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(tensors.items())
    }
    safetensors.torch.save_file(saved, folder / "adapter_model.safetensors", {"format": "pt"})


def _with_delta(module: Any, state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each layer's A and B, as of one adapter with scale 1: with D = B' A', s B A + D = (s B, B') (A; A')."""
    for name, layer in _layers(module):
        a, b = f"{name}{MATRIX_A}weight", f"{name}{MATRIX_B}weight"
        delta_a, delta_b = delta_names(a)
        yield a, torch.cat([state[a], state[delta_a]])
        yield b, torch.cat([layer.scaling[_NAME] * state[b], state[delta_b]], dim=1)


def _layers(module: Any) -> Iterator[tuple[str, Any]]:
    """The layers that have adapters, with their names."""
    from peft.tuners.lora import LoraLayer

    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer))


def plain_name(name: str) -> str:
    """The name of a tensor of the model without adapters."""
    return name.replace(_BASE, ".")


def _saved(module: Any, config: Config) -> set[str]:
    """The names of the layers that `modules_to_save` selects. Raises `UserError` if there are none."""
    if config.modules_to_save is None:
        return set()
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    chosen = select("modules_to_save", config.modules_to_save, names, module.base_model_prefix)
    return {name.rpartition(".")[0] for name in chosen}


def _head(module: Any, new_parameters: Collection[str]) -> list[str]:
    """The names of the layers that are trained whole."""
    prefix = f"{module.base_model_prefix}."
    new = set() if list(new_parameters) == ["all"] else set(new_parameters)  # model=tiny
    whole = [name for name, _ in module.named_parameters() if not name.startswith(prefix) or name in new]
    return sorted({name.rpartition(".")[0] for name in whole})


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
