"""One site: local training on its shard, and the delta that it yields. A site knows of no other site."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.distributed.weighted_sum import diverged, largest
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.metrics import BatchMetrics, SiteMetrics
from scaling_fl.federated.site_state import Store
from scaling_fl.models.flat_parameters import FlatModel, Layout

# Every one works elementwise, so that it is the same over one flat tensor as over many.
_OPTIMISERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {"fused": True}),
    "adam": (torch.optim.Adam, {"fused": True}),
    "sgd": (torch.optim.SGD, {"fused": True}),
    "adagrad": (torch.optim.Adagrad, {"foreach": True}),
    "rmsprop": (torch.optim.RMSprop, {"foreach": True}),
}


# What they keep of each segment of parameters, beside the number of steps; all of it zero at first.
_KEPT = {
    "adamw": ("exp_avg", "exp_avg_sq"),
    "adam": ("exp_avg", "exp_avg_sq"),
    "sgd": (),
    "adagrad": ("sum",),
    "rmsprop": ("square_avg",),
}
_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision(config: Config, device: torch.device) -> str:
    """What `precision` comes to on a device: "fp32", "bf16" or "fp16"."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


@dataclass(frozen=True)
class Resident:
    """What a worker holds once, for all of its sites: the model, its device, and the token stores."""

    config: Config
    model: FlatModel
    train: token_store.TokenStore
    test: token_store.TokenStore
    device: torch.device
    on_step: Callable[[], None] = lambda: None  # called after each local step and each evaluation batch
    held_back: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # of `train`; in no shard
    store: Store | None = None  # of what sites keep, if they do

    def __post_init__(self) -> None:
        if self.config.gradient_checkpointing:
            module = self.model.module  # the second is the older name
            enable = getattr(module, "activation_checkpointing_enable", None) or module.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        if self.config.compile:
            self.model.module.compile(dynamic=True)  # batches differ in length

    def logits(self, batch: token_store.Batch) -> torch.Tensor:
        """Forward pass, in the configured precision: (B, C) float32."""
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if batch.token_type_ids is not None:
            inputs["token_type_ids"] = batch.token_type_ids
        dtype = _AUTOCAST[precision(self.config, self.device)]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            logits: torch.Tensor = self.model.module(**inputs).logits
        return logits.float()

    def to_device(self, batch: token_store.Batch) -> token_store.Batch:
        """The batch on the device. From pinned memory a GPU fetches it while the CPU goes on."""
        tensors = {name: tensor for name, tensor in batch._asdict().items() if tensor is not None}
        if self.device.type == "cuda":
            tensors = {name: tensor.pin_memory().to(self.device, non_blocking=True) for name, tensor in tensors.items()}
        return token_store.Batch(**tensors)


@dataclass(frozen=True)
class Site:
    """A participant: its number in the federation, and the training examples that it holds."""

    number: int
    shard: npt.NDArray[np.int64]
    resident: Resident

    @property
    def num_examples(self) -> int:
        """n_k of McMahan et al. 2017: the weight of this site's delta."""
        return len(self.shard)

    def own(self, params: torch.Tensor) -> torch.Tensor:
        """The parameters (size,) of this site's own model; `params` before its first round."""
        store = self.resident.store
        return params if store is None else store.load(self.number).get("params", params)

    def train(self, params: torch.Tensor, round_: int) -> tuple[torch.Tensor, SiteMetrics]:
        """Local training from the server's `params` (size,), which stay as they are.

        Returns delta = params − parameters after training (size,), in the model's own buffer: it is valid
        until the model is loaded again. The optimiser starts afresh, unless it is kept; order and dropout are functions of
        (seed, round, site). Without a global model, a site starts from where it stopped.
        """
        resident, config, model = self.resident, self.resident.config, self.resident.model
        kept = {} if resident.store is None else resident.store.load(self.number)
        params = kept.pop("params", params)
        model.load(params)
        model.module.train()
        optimiser = local_optimiser(config, model)
        _take_up(optimiser, kept, config)
        # It begins lower than torch's 2^16: each round begins anew, and a site may have few steps to waste.
        halved = precision(config, resident.device) == "fp16"
        scaler = torch.amp.GradScaler(resident.device.type, init_scale=2.0**12, enabled=halved)
        step, num_steps = 0, config.num_local_epochs * -(-self.num_examples // config.batch_size)
        torch.manual_seed(seeding.torch_seed(config.seed, "dropout", round_, self.number))
        # Sums stay on the device until the end: reading one in the loop would make the CPU wait for the GPU.
        loss_sum = torch.zeros((), dtype=torch.float64, device=resident.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=resident.device)
        for epoch in range(config.num_local_epochs):
            for indices in token_store.training_batches(
                resident.train, self.shard, config.batch_size, config.group_by_length,
                config.seed, round_, self.number, epoch,
            ):  # fmt: skip
                model.gradient.zero_()
                for part in np.array_split(indices, min(config.gradient_accumulation_steps, len(indices))):
                    batch = resident.to_device(resident.train.batch(part))
                    logits = resident.logits(batch)
                    loss = cross_entropy(logits, batch.labels, reduction="sum")
                    scaler.scale(loss / len(indices)).backward()
                    loss_sum += loss.detach()
                    num_correct += (logits.detach().argmax(-1) == batch.labels).sum()
                if config.max_grad_norm is not None:
                    scaler.unscale_(optimiser)
                    clip(model.gradient, config.max_grad_norm)
                for group in optimiser.param_groups:
                    group["lr"] = learning_rate(config, round_, (step + 0.5) / num_steps)
                scaler.step(optimiser)
                scaler.update()
                step += 1
                resident.on_step()
        if resident.store is not None:
            own = {} if config.has_global_model else {"params": model.flat}
            if own and not largest(model.flat) < float("inf"):  # nobody will aggregate it, and see
                raise diverged([self.number])
            resident.store.save(self.number, round_, own | (_put_down(optimiser) if config.keep_optimiser else {}))
        delta = torch.sub(params.to(resident.device), model.flat, out=model.flat)
        count = self.num_examples * config.num_local_epochs
        return delta, SiteMetrics(self.number, loss_sum.item(), int(num_correct.item()), count)


def clip(gradient: torch.Tensor, max_norm: float) -> None:
    """Scale the flat gradient (size,) in place to Euclidean length `max_norm` where it is longer.

    As `torch.nn.utils.clip_grad_norm_` does, and like it without making the CPU wait for the GPU.
    """
    gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))


def local_optimiser(config: Config, model: FlatModel) -> torch.optim.Optimizer:
    """A fresh optimiser over two flat tensors: what weight decay applies to, and what it spares."""
    groups = []
    for start, stop, decay in _segments(config, model.layout):
        segment = torch.nn.Parameter(model.flat[start:stop])
        segment.grad = model.gradient[start:stop]
        groups.append({"params": [segment], "weight_decay": decay})
    kind, options = _OPTIMISERS[config.optimiser]
    return kind(groups, lr=config.learning_rate, **options)


def _put_down(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state, by name."""
    states = [optimiser.state[group["params"][0]] for group in optimiser.param_groups]
    return {f"optimiser.{number}.{key}": value for number, state in enumerate(states) for key, value in state.items()}


def _take_up(optimiser: torch.optim.Optimizer, kept: Mapping[str, torch.Tensor], config: Config) -> None:
    """Give an optimiser the state that `_put_down` gave."""
    for name, value in kept.items():
        _, number, key = name.split(".")
        (segment,) = optimiser.param_groups[int(number)]["params"]
        on_cpu = key == "step" and config.optimiser in ("adagrad", "rmsprop")
        optimiser.state[segment][key] = value if on_cpu else value.to(segment.device)


def _segments(config: Config, layout: Layout) -> list[tuple[int, int, float]]:
    """Start, stop and weight decay of the parts of the flat buffer that an optimiser steps."""
    segments = [(0, layout.decayed, config.weight_decay), (layout.decayed, layout.trained, 0.0)]
    return [(start, stop, decay) for start, stop, decay in segments if start < stop]


def initially_kept(config: Config, layout: Layout) -> dict[str, npt.NDArray[np.float32]]:
    """What a site keeps, by name, with zeros in the place of values; they take no memory."""
    kept = {} if config.has_global_model else {"params": np.broadcast_to(np.float32(0), (layout.size,))}
    if not config.keep_optimiser:
        return kept
    for number, (start, stop, _) in enumerate(_segments(config, layout)):
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_KEPT[config.optimiser], (stop - start,))
        for key, shape in (shapes | {"step": ()} if shapes else shapes).items():
            kept[f"optimiser.{number}.{key}"] = np.broadcast_to(np.float32(0), shape)
    return kept


@torch.inference_mode()
def evaluate(
    resident: Resident, params: torch.Tensor, worker: int, num_workers: int, held_back: bool = False
) -> list[BatchMetrics]:
    """Evaluate the server's `params` (size,) on this worker's part of the test set, or of the held-back examples.

    The whole set is cut into batches that don't depend on the number of workers; worker w takes batches
    w, w + num_workers, …, so that all workers together cover each example once. A batch that doesn't fit into the
    GPU's memory is computed in parts, and so are those after it.
    """
    resident.model.load(params)
    resident.model.module.eval()
    num_labels = resident.model.module.config.num_labels
    pending = []
    store = resident.train if held_back else resident.test
    examples = resident.held_back if held_back else np.arange(len(store))
    fitting = resident.config.evaluation_batch_size(len(examples))
    batches = token_store.evaluation_batches(store, examples, fitting)
    for number in range(worker, len(batches), num_workers):
        loss_sum = torch.zeros((), dtype=torch.float64, device=resident.device)
        confusion = torch.zeros(num_labels**2, dtype=torch.int64, device=resident.device)
        rest = batches[number]
        while len(rest) > 0:
            try:
                batch = resident.to_device(store.batch(rest[:fitting]))
                logits = resident.logits(batch)
            except torch.OutOfMemoryError:
                if fitting == 1:
                    raise
                fitting = -(-min(fitting, len(rest)) // 2)
                continue
            loss_sum += cross_entropy(logits, batch.labels, reduction="none").double().sum()
            cells = batch.labels * num_labels + logits.argmax(-1)
            confusion.index_add_(0, cells, torch.ones_like(cells))
            rest = rest[fitting:]
        pending.append((number, loss_sum, confusion.view(num_labels, num_labels)))
        resident.on_step()
    return [BatchMetrics(number, loss.item(), confusion.cpu().numpy()) for number, loss, confusion in pending]
