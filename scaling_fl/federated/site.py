"""Local training of one site on its shard. A site doesn't know the other sites."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl import seeding
from scaling_fl.distributed.weighted_sum import divergence_error, max_abs
from scaling_fl.federated import algorithms, local_work
from scaling_fl.federated.compression import compress
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.local_optimiser import load_state, local_optimiser, state_tensors
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.metrics import SiteMetrics
from scaling_fl.federated.resident import Resident, precision
from scaling_fl.models import new_parameters

_NOTHING = torch.empty(0)


@dataclass(frozen=True)
class Site:
    """A participant of the federation: its number and its training examples."""

    number: int
    shard: npt.NDArray[np.int64]
    resident: Resident

    @property
    def num_examples(self) -> int:
        """n_k of McMahan et al. 2017."""
        return len(self.shard)

    def own_params(self, params: torch.Tensor) -> torch.Tensor:
        """Return the parameters (size,) of this site's own model; `params` before its first round."""
        store = self.resident.store
        return params if store is None else store.load(self.number).get("params", params)

    def train(
        self, params: torch.Tensor, round_: int, extra: torch.Tensor = _NOTHING
    ) -> tuple[torch.Tensor, SiteMetrics]:
        """Train locally from the server's `params` (size,) and `extra` (extra,), which are left unchanged.

        Returns delta = params − parameters after training, and what methods send beside it, (size + extra,): the model's
        buffer, valid until the next load. Data order and dropout are functions of (seed, round, site). The optimiser
        starts afresh unless `keep_optimiser` is set. Without a global model, the site continues from its own parameters.
        Raises `JobFailed` if these diverge.
        """
        resident, config, model = self.resident, self.resident.config, self.resident.model
        kept = {} if resident.store is None else resident.store.load(self.number)
        params = kept.pop("params", params)
        if config.download != "fp32":
            params = self._downloaded(params, round_)
        model.load(params)
        if config.head_init == "independent" and round_ == 1:
            new_parameters.draw(
                model.module, resident.new_parameters, seeding.torch_seed(config.seed, "head", self.number)
            )
        terms = algorithms.local_terms(algorithms.Start(self, round_, params, extra, kept))
        model.module.train()
        optimiser = local_optimiser(config, model)
        load_state(optimiser, kept, config)
        # Lower than torch's 2^16: the scaler restarts every round, and a site may have too few steps to lose any to
        # overflows.
        fp16 = precision(config, resident.device) == "fp16"
        scaler = torch.amp.GradScaler(resident.device.type, init_scale=2.0**12, enabled=fp16)
        work = local_work.of_site(config, self.num_examples, round_, self.number)
        torch.manual_seed(seeding.torch_seed(config.seed, "dropout", round_, self.number))
        rates = 0.0
        # Read only after the loop: reading a value makes the CPU wait for the GPU.
        loss_sum = torch.zeros((), dtype=torch.float64, device=resident.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=resident.device)
        for step, indices in enumerate(local_batches(config, resident.train, self.shard, round_, self.number)):
            model.gradient.zero_()
            for micro_batch in np.array_split(indices, min(config.gradient_accumulation_steps, len(indices))):
                batch = resident.to_device(resident.train.batch(micro_batch))
                logits, labels = resident.logits(batch), batch.labels
                for term in terms:
                    labels = term.labels(labels, logits.shape[1])
                loss = cross_entropy(logits, labels, reduction="sum")
                scaler.scale(loss / len(indices)).backward()
                loss_sum += loss.detach()
                num_correct += (logits.detach().argmax(-1) == labels).sum()
            if terms or config.max_grad_norm is not None:
                scaler.unscale_(optimiser)
            for term in terms:
                term.add_gradient(model.gradient, model.flat)
            if config.max_grad_norm is not None:
                clip(model.gradient, config.max_grad_norm)
            rate = learning_rate(config, round_, (step + 0.5) / work.steps)
            rates += rate
            for group in optimiser.param_groups:
                group["lr"] = rate
            scaler.step(optimiser)
            scaler.update()
            resident.on_step()
        own = {} if config.has_global_model else {"params": model.flat.clone()}
        if own and not max_abs(model.flat) < float("inf"):  # aggregation won't check: nothing is aggregated
            raise divergence_error([self.number])
        delta = torch.sub(params.to(resident.device), model.flat, out=model.flat)
        for term in terms:
            own |= term.finish(delta, model.extra, rates)
        if resident.store is not None:
            resident.store.save(self.number, round_, own | (state_tensors(optimiser) if config.keep_optimiser else {}))
        return model.row, SiteMetrics(self.number, loss_sum.item(), int(num_correct.item()), work.examples)

    def _downloaded(self, params: torch.Tensor, round_: int) -> torch.Tensor:
        """The server's `params` (size,) as they arrive: the same at all sites of a round."""
        config, received = self.resident.config, params.clone()
        trained = received[: self.resident.model.layout.trained]
        compress(config.download, trained, seeding.torch_seed(config.seed, "download", round_))
        return received


def clip(gradient: torch.Tensor, max_norm: float) -> None:
    """Clip the flat gradient (size,) in place to Euclidean norm `max_norm`.

    Equivalent to `torch.nn.utils.clip_grad_norm_`; the CPU doesn't wait for the GPU.
    """
    gradient.mul_((max_norm / (gradient.norm() + 1e-6)).clamp(max=1.0))
