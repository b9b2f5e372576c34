"""The resident model of a worker: one model, device and set of token stores for all its sites."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.choices import Choices
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.models import token_table
from scaling_fl.models.flat_parameters import FlatModel

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(config: Config, device: torch.device) -> str:
    """Resolve `precision` for a device: "fp32", "bf16" or "fp16"."""
    if config.precision != "auto":
        return config.precision
    if config.base_precision == "bf16":
        return "bf16"
    return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"


class Examples(NamedTuple):
    """Rows of a token store."""

    store: token_store.TokenStore
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Resident:
    """What all sites of a worker share: the model, its device and the token stores."""

    config: Config
    model: FlatModel
    train: token_store.TokenStore
    test: token_store.TokenStore
    device: torch.device
    on_step: Callable[[], None] = lambda: None  # called after each local step and each evaluation batch
    on_alive: Callable[[], None] = lambda: None  # called after other work that takes as long
    held_back: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, np.int64)
    )  # indices into `train` that are in no shard
    new_parameters: tuple[str, ...] = ()  # names of those that the pre-trained weights lack
    store: SiteStateStore | None = None  # only if sites keep state between rounds
    choices: Choices | None = None  # of the test set
    tokenizer: Any = None  # only for `generate_examples`

    def __post_init__(self) -> None:
        if self.config.gradient_checkpointing:
            module = self.model.module  # the second name below is the older one
            enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if self.config.compile:
            self.model.module.compile(dynamic=True)  # batches differ in length

    @functools.cached_property
    def token_table(self) -> tuple[str, torch.nn.Embedding] | None:
        """The token embeddings and the name of their parameter, if a step can leave rows out; found by a forward pass."""
        batch = self.to_device(self.train.batch(np.array([self.train.lengths.argmin()])))
        return token_table.find(self.model.module, batch.input_ids, lambda: self.logits(batch))

    @property
    def test_set(self) -> Examples:
        """The whole test set."""
        return Examples(self.test, np.arange(len(self.test)))

    def training_rows(self, rows: npt.NDArray[np.int64]) -> Examples:
        """Some of the training examples."""
        return Examples(self.train, rows)

    def logits(self, batch: token_store.Batch) -> torch.Tensor:
        """Run the forward pass in the configured precision; return logits (P, C) in float32, a row for each prediction."""
        inputs = {"input_ids": batch.input_ids}
        if (mask := self._mask(batch)) is not None:
            inputs["attention_mask"] = mask
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        with self.autocast(), self._only_at(batch.positions):
            logits: torch.Tensor = self.model.module(**inputs).logits
        if batch.positions is not None:
            logits = logits.flatten(0, 1)
            if len(logits) != len(batch.positions):
                logits = logits[batch.positions]
        return logits.float()

    @contextlib.contextmanager
    def _only_at(self, positions: torch.Tensor | None) -> Iterator[None]:
        """Give the output layer only the hidden states at `positions` (P,): it has as many weights as many other layers.

        A compiled model computes all.
        """
        if positions is None or self.config.compile:
            yield
            return

        def select(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *others = inputs
            return hidden.flatten(0, 1)[positions][None], *others

        hook = self.model.module.get_output_embeddings().register_forward_pre_hook(select)
        try:
            yield
        finally:
            hook.remove()

    def _mask(self, batch: token_store.Batch) -> torch.Tensor | None:
        """The mask that the model is given.

        A model that predicts tokens from those before them never sees padding on the right, and attention is faster
        without a mask.
        """
        unseen = batch.positions is not None and not self.train.left
        return batch.attention_mask if self.config.attention_mask and not unseen else None

    def autocast(self) -> torch.autocast:
        """The context of the configured precision."""
        dtype = AUTOCAST[precision(self.config, self.device)]
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def to_device(self, batch: token_store.Batch) -> token_store.Batch:
        """Copy the batch to the device; to a GPU in one copy from pinned memory, so that the CPU doesn't wait.

        WSL2 and limits on locked memory may refuse that memory; then the CPU waits. On a GPU, a batch without padding has
        no mask: attention is faster then.
        """
        if self.device.type != "cuda":
            return batch
        mask = self._mask(batch)
        batch = batch._replace(attention_mask=None if mask is None or mask.all() else mask)
        values, restored = batch.packed()
        with contextlib.suppress(RuntimeError):
            values = values.pin_memory()
        return restored(values.to(self.device, non_blocking=True))
