"""Compressed uploads, with error feedback: Seide et al. 2014; Karimireddy et al. 2019, algorithm 2 (EF-SGD).

Site k keeps e_k, which starts at 0. With C the compression, it sends C(delta_k + e_k), and then

    e_k ← delta_k + e_k − C(delta_k + e_k)

So what one round leaves out is sent later. Only trained parameters are compressed.
"""

from dataclasses import dataclass

import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import LocalTerm, Start
from scaling_fl.federated.compression import compress, num_kept, num_travelling
from scaling_fl.models.flat_parameters import Layout

_ERROR = "upload_error"


@dataclass(frozen=True)
class Upload(LocalTerm):
    """The upload of one site in one round."""

    kind: str
    num_kept: int  # for topk
    seed: int
    trained: int  # length of the trained parameters
    error: torch.Tensor | None  # e_k

    def finish(self, delta: torch.Tensor, extra: torch.Tensor, rates: float) -> dict[str, torch.Tensor]:
        """See `LocalTerm.finish`."""
        values = delta[: self.trained]
        if self.error is None:
            compress(self.kind, values, self.seed, self.num_kept)
            return {}
        error = values.add_(self.error).clone()
        compress(self.kind, values, self.seed, self.num_kept)
        return {_ERROR: error.sub_(values)}


def used(config: Config) -> bool:
    """See the package."""
    return config.upload != "fp32"


def begin(start: Start) -> Upload:
    """See the package."""
    resident = start.site.resident
    config = resident.config
    seed = seeding.torch_seed(config.seed, "upload", start.round, start.site.number)
    error = start.own(_ERROR) if config.error_feedback else None
    layout = resident.model.layout
    kept = num_kept(num_travelling(config, layout), config.topk_share)
    return Upload(config.upload, kept, seed, layout.trained, error)


def site_state(config: Config, layout: Layout) -> dict[str, int]:
    """See the package."""
    return {_ERROR: layout.trained} if config.keeps_upload_error else {}
