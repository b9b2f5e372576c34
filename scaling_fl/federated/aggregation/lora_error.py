"""How wrong it is to average LoRA's A and B each on its own: the error of the product, in each round.

With site k's matrices A_k, B_k and its weight w_k:

    lora.product_error = ‖Σ w_k B_k A_k − (Σ w_k B_k) (Σ w_k A_k)‖ / ‖Σ w_k B_k A_k‖

over all adapted layers together (Frobenius norms). The products are as large as the base, so they are never formed. With
random vectors u and z, E (uᵀ M z)² = ‖M‖² for any M. Sites add (uᵀ B_k) (A_k z), uᵀ B_k and A_k z, for 16 vectors each. Those of a
layer begin one number after those of the layer before it: drawing others for each would take as long as a short step.
Personal matrices count as well: the error is what averaging them would cost.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl import seeding
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated.algorithms import personal
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.flat_parameters import Layout

_PROBES = 16  # of each side: an error of some per cent where there are dozens of layers


@dataclass
class Sketches:
    """Weighted sums over the sites of one worker, by layer, in float64. R is the layer's rank, K the number of probes."""

    layout: Layout
    seed: int
    products: dict[str, torch.Tensor] = field(default_factory=dict)  # (K, K): Σ w_k (uᵀ B_k) (A_k z)
    left: dict[str, torch.Tensor] = field(default_factory=dict)  # (K, R): Σ w_k uᵀ B_k
    right: dict[str, torch.Tensor] = field(default_factory=dict)  # (R, K): Σ w_k A_k z
    probes: torch.Tensor | None = None  # (2, length, K): u and z, drawn at the first site

    def add(self, params: torch.Tensor, weight: float) -> None:
        """Add a site's parameters (size,)."""
        views = self.layout.views(params)
        names = {name: name.replace(MATRIX_A, MATRIX_B) for name in sorted(views) if MATRIX_A in name}
        if self.probes is None:
            longest = max(max(views[a].shape[1], len(views[b])) for a, b in names.items())
            generator = torch.Generator().manual_seed(seeding.torch_seed(self.seed, "lora error"))
            drawn = torch.randn(2, longest + len(names), _PROBES, dtype=torch.float64, generator=generator)
            self.probes = drawn.to(params.device)
        for number, (name, name_b) in enumerate(names.items()):
            a, b = views[name].double(), views[name_b].double()
            of_left, of_right = self.probes[:, number:]
            left, right = of_left[: len(b)].T @ b, a @ of_right[: a.shape[1]]
            for sums, value in ((self.products, left @ right), (self.left, left), (self.right, right)):
                sums[name] = sums.get(name, 0) + weight * value

    def arrays(self) -> dict[str, tuple[npt.NDArray[np.float64], ...]]:
        """The three sums by layer, for other workers."""
        return {
            name: tuple(sums[name].cpu().numpy() for sums in (self.products, self.left, self.right))
            for name in self.products
        }


def relative_error(parts: Sequence[Mapping[str, tuple[npt.NDArray[np.float64], ...]]]) -> float:
    """The error, from all workers' `Sketches.arrays`; 0 while B is.

    The last digits depend on which worker trains which site, and so are left out.
    """
    wrong = whole = 0.0
    for name in sorted({name for part in parts for name in part}):
        product, left, right = (
            np.sum(of_all, axis=0) for of_all in zip(*(p[name] for p in parts if name in p), strict=True)
        )
        wrong += float(np.square(product - left @ right).sum())
        whole += float(np.square(product).sum())
    error = (wrong / whole) ** 0.5 if whole else 0.0
    return float(f"{error:.6g}") if error > 1e-6 else 0.0


@dataclass
class WithLoraError:
    """An aggregation whose results have the error, too."""

    inner: Any  # an `Aggregation`
    resident: Resident
    collectives: Collectives
    state: ServerState
    weights: Mapping[int, float]
    sketches: Sketches

    @property
    def results(self) -> dict[str, float]:
        """See `Aggregation`."""
        found: dict[str, float] = self.inner.results
        return found

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        params, resident = self.state.params.to(delta.device) - delta[: len(self.state.params)], self.resident
        if resident.config.personal is not None and resident.store is not None:
            kept = resident.store.load(site)
            params = personal.own_params(resident.config, resident.model.layout, params, kept)
        self.sketches.add(params, self.weights[site])
        self.inner.add(site, delta)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        self.inner.results["lora.product_error"] = relative_error(self.collectives.all_gather(self.sketches.arrays()))
        yield from self.inner.combined()


def watch(inner: Any, worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Any:
    """The aggregation `inner` with the error, if sites have adapters that are federated."""
    resident, config = worker_sites.resident, worker_sites.resident.config
    if config.trainable != "lora" or config.baseline is not None:
        return inner
    weights = worker_sites.cohort(round_)
    total = sum(weights.values())  # not 1 with a fixed denominator
    weights = {site: weight / total for site, weight in weights.items()}
    sketches = Sketches(resident.model.layout, config.seed)
    return WithLoraError(inner, resident, collectives, state, weights, sketches)
