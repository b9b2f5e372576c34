"""LoRA by the mean of the products, M = Σ w_k B_k A_k, in the place of the product of the means of A and B.

With s = alpha / rank, and D = V U what the server adds to the base weights of a layer:

    exact    FedEx-LoRA (Singhal et al. 2024)   D ← D + s (M − B̄ Ā), with the means Ā and B̄ as the server's A and B
    stack    FLoRA (Wang et al. 2024)           D ← D + s M; A is drawn anew, B ← 0
    svd      FlexLoRA (Bai et al. 2024)         B ← V S, A ← U of the largest singular values of M

M is never formed: side by side, the sites' w_k B_k and A_k are its factors. Ranks may differ between sites.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.adapters import OF_PRODUCTS
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites
from scaling_fl.models import adapters
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.flat_parameters import Layout

Factors = tuple[torch.Tensor, torch.Tensor]  # (out, n) and (n, in), whose product is meant
Pair = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]  # B and A of a layer
OfSite = dict[str, Pair]  # by the name of A
Change = tuple[dict[str, torch.Tensor], list[float]]  # new values by name, and the two errors of `truncated`


class Weighted(NamedTuple):
    """The adapter of a layer at one site, in float64."""

    weight: float
    b: torch.Tensor  # (out, r)
    a: torch.Tensor  # (r, in)


class Layer(NamedTuple):
    """What an aggregation knows of a layer."""

    number: int
    name_a: str
    server: Mapping[str, torch.Tensor]  # of all layers, by name
    sites: list[Weighted]

    @property
    def name_b(self) -> str:
        """The name of B."""
        return self.name_a.replace(MATRIX_A, MATRIX_B)

    def product(self) -> Factors:
        """The factors of M."""
        return torch.cat([w * b for w, b, _ in self.sites], dim=1), torch.cat([a for _, _, a in self.sites])


@dataclass
class OfProducts:
    """An aggregation that changes what the mean `inner` yields for A, B and D."""

    inner: Any  # an `Aggregation`
    config: Config
    layout: Layout
    collectives: Collectives
    state: ServerState
    weights: Mapping[int, float]
    round: int
    sites: dict[int, OfSite] = field(default_factory=dict)

    @property
    def results(self) -> dict[str, float]:
        """See `Aggregation`."""
        found: dict[str, float] = self.inner.results
        return found

    def add(self, site: int, delta: torch.Tensor) -> None:
        """See `Aggregation`."""
        trained = slice(self.layout.trained)
        server, deltas = (
            self.layout.views(self.state.params[trained].to(delta.device)),
            self.layout.views(delta[trained]),
        )

        def own(name: str) -> npt.NDArray[np.float32]:
            found: npt.NDArray[np.float32] = (server[name] - deltas[name]).cpu().numpy()
            return found

        self.sites[site] = {
            name: (own(name.replace(MATRIX_A, MATRIX_B)), own(name)) for name in server if MATRIX_A in name
        }
        self.inner.add(site, delta)

    def combined(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """See `Aggregation`."""
        sites = {site: of_site for part in self.collectives.all_gather(self.sites) for site, of_site in part.items()}
        deltas = self._deltas({site: sites[site] for site in sorted(sites)})
        entries = [entry for entry in self.layout.entries if entry.name in deltas]
        for chunk, delta in self.inner.combined():
            for name, start, shape in entries:
                first, last = max(chunk.start, start), min(chunk.stop, start + shape.numel())
                if first < last:
                    values = deltas[name].flatten()[first - start : last - start]
                    delta[first - chunk.start : last - chunk.start] = values.to(delta)
            yield chunk, delta

    def _deltas(self, sites: Mapping[int, OfSite]) -> dict[str, torch.Tensor]:
        """How far the new values of tensors are below the server's, by name. The same on every worker."""
        if not sites or not all(np.isfinite(m).all() for s in sites.values() for pair in s.values() for m in pair):
            return {}  # `inner` refuses them
        change = {"exact": self._exact, "stack": self._stack, "svd": self._svd}[self.config.lora_aggregation]
        server, deltas, cut, whole = self.layout.views(self.state.params), dict[str, torch.Tensor](), 0.0, 0.0
        for number, name in enumerate(sorted(next(iter(sites.values())))):
            pairs = [
                Weighted(self.weights[site], *(torch.from_numpy(matrix).double() for matrix in of_site[name]))
                for site, of_site in sites.items()
            ]
            new, errors = change(Layer(number, name, server, pairs))
            deltas |= {key: server[key].cpu() - value for key, value in new.items()}
            cut, whole = cut + errors[0], whole + errors[1]
        self.results["lora.truncation_error"] = (cut / whole) ** 0.5 if whole else 0.0
        return deltas

    def _svd(self, layer: Layer) -> Change:
        (new_b, new_a), *errors = truncated(layer.product(), self.config.lora_rank)
        return {layer.name_a: new_a, layer.name_b: new_b}, errors

    def _exact(self, layer: Layer) -> Change:
        left, right = layer.product()
        mean_b = torch.stack([w * b for w, b, _ in layer.sites]).sum(0)
        mean_a = torch.stack([w * a for w, _, a in layer.sites]).sum(0)
        return self._added(layer, (torch.cat([left, -mean_b], dim=1), torch.cat([right, mean_a])))

    def _stack(self, layer: Layer) -> Change:
        added, errors = self._added(layer, layer.product())
        old_b, old_a = layer.server[layer.name_b].cpu(), layer.server[layer.name_a]
        return added | {layer.name_a: self._drawn(old_a.shape, layer.number), layer.name_b: 0 * old_b}, errors

    def _added(self, layer: Layer, more: Factors) -> Change:
        """The matrices of D when `more` is added to it."""
        name_a, name_b = adapters.delta_names(layer.name_a)
        old_b, old_a = (layer.server[name].cpu().double() for name in (name_b, name_a))
        more, rank = (adapters.scale(self.config) * more[0], more[1]), len(old_a)
        if rank == min(len(old_b), old_a.shape[1]):  # one of the two is the identity, the other is D
            name, old = (name_b, old_b) if rank == old_a.shape[1] else (name_a, old_a)
            return {name: old + more[0] @ more[1]}, [0.0, 0.0]
        (new_b, new_a), *errors = truncated((torch.cat([old_b, more[0]], 1), torch.cat([old_a, more[1]])), rank)
        return {name_b: new_b, name_a: new_a}, errors

    def _drawn(self, shape: torch.Size, number: int) -> torch.Tensor:
        """A new A, as peft draws it."""
        seed = seeding.torch_seed(self.config.seed, "lora", self.round, number)
        generator = torch.Generator().manual_seed(seed)
        return torch.nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator)


def truncated(factors: Factors, rank: int) -> tuple[Factors, float, float]:
    """The product of rank `rank` that is closest to that of `factors` (Eckart and Young 1936), as (out, rank) with the
    singular values, and (rank, in).

    Also returns the squared norm of what is cut off, and of the whole.
    """
    (q_left, r_left), (q_right, r_right) = torch.linalg.qr(factors[0]), torch.linalg.qr(factors[1].T)
    u, s, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    left, right = (q_left @ u)[:, :rank] * s[:rank], (v @ q_right.T)[:rank]
    missing = rank - len(right)  # where the factors have fewer columns and rows
    padded = torch.nn.functional.pad(left, (0, missing)), torch.nn.functional.pad(right, (0, 0, 0, missing))
    return padded, float(s[rank:].square().sum()), float(s.square().sum())


def begin(inner: Any, worker_sites: WorkerSites, collectives: Collectives, state: ServerState, round_: int) -> Any:
    """The aggregation `inner`, or that of products, if `lora_aggregation` asks for it."""
    config = worker_sites.resident.config
    if config.lora_aggregation not in OF_PRODUCTS or not config.aggregates:
        return inner
    centralised = config.baseline == "centralised"  # its one site has the whole cohort's examples
    weights = {0: 1.0} if centralised else worker_sites.cohort(round_)
    return OfProducts(inner, config, worker_sites.resident.model.layout, collectives, state, weights, round_)
