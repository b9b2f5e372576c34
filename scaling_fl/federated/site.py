"""Local training of one site on its shard. A site doesn't know the other sites."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl import seeding
from scaling_fl.distributed.weighted_sum import divergence_error, max_abs
from scaling_fl.federated import algorithms, local_work
from scaling_fl.federated.compression import compress
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.federated.local_optimiser import load_state, local_optimiser, state_tensors
from scaling_fl.federated.local_training import train_steps
from scaling_fl.federated.lr_schedule import step_rates
from scaling_fl.federated.metrics import SiteMetrics
from scaling_fl.federated.resident import Resident
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
        """The parameters (size,) of this site's own model; `params`, the server's, before its first round."""
        store = self.resident.store
        if store is None:
            return params
        return algorithms.own_params(self.resident.config, self.resident.model.layout, params, store.load(self.number))

    def tuned_params(self, params: torch.Tensor, round_: int) -> torch.Tensor:
        """Its own parameters after `fine_tune_steps` on its shard, which nothing keeps; a function of (seed, round, site)."""
        resident, config, model = self.resident, self.resident.config, self.resident.model
        own, steps = self.own_params(params), self.resident.config.fine_tune_steps
        if steps == 0:
            return own
        model.load(own)
        stream = dataclasses.replace(config, num_local_steps=steps)
        batches = local_batches(stream, resident.train, self.shard, round_, self.number)
        torch.manual_seed(seeding.torch_seed(config.seed, "fine-tuning", round_, self.number))
        train_steps(resident, local_optimiser(config, model), batches, [config.learning_rate] * steps)
        return model.flat.clone()

    def train(
        self, params: torch.Tensor, round_: int, extra: torch.Tensor = _NOTHING, leave_params: bool = False
    ) -> tuple[torch.Tensor, SiteMetrics]:
        """Train locally from the server's `params` (size,) and `extra` (extra,), which are left unchanged.

        Returns delta = params − parameters after training, and what methods send beside it, (size + extra,): the model's
        buffer, valid until the next load. Data order and dropout are functions of (seed, round, site). The optimiser
        starts afresh unless `keep_optimiser` is set. Without a global model, the site continues from its own parameters.
        Raises `JobFailed` if these diverge. `leave_params`: return the parameters after training instead, for a sum that
        subtracts them in the same pass over memory; not where `algorithms.shape_deltas`.
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
        optimiser = local_optimiser(config, model)
        load_state(optimiser, kept, config)
        work = local_work.of_site(config, self.num_examples, round_, self.number)
        batches = local_batches(config, resident.train, self.shard, round_, self.number)
        torch.manual_seed(seeding.torch_seed(config.seed, "dropout", round_, self.number))
        rates = step_rates(config, round_, work.steps)
        loss_sum, num_correct, count = train_steps(resident, optimiser, batches, rates, terms)
        own = {} if config.aggregates else {"params": model.flat.clone()}
        if own and not max_abs(model.flat) < float("inf"):  # aggregation won't check: nothing is aggregated
            raise divergence_error([self.number])
        if not leave_params:
            torch.sub(params.to(resident.device), model.flat, out=model.flat)
        for term in terms:
            own |= term.finish(model.flat, model.extra, sum(rates))
        if resident.store is not None:
            resident.store.save(self.number, round_, own | (state_tensors(optimiser) if config.keep_optimiser else {}))
        return model.row, SiteMetrics(self.number, loss_sum.item(), int(num_correct.item()), count)

    def _downloaded(self, params: torch.Tensor, round_: int) -> torch.Tensor:
        """The server's `params` (size,) as they arrive: the same at all sites of a round."""
        config, received = self.resident.config, params.clone()
        trained = received[: self.resident.model.layout.trained]
        compress(config.download, trained, seeding.torch_seed(config.seed, "download", round_))
        return received
