"""RoLoRA (Chen et al. 2024): in odd rounds B is trained and A rests, in even rounds the reverse.

All sites of a round have the same A, or the same B. So mean(B_k A) = mean(B_k) A: the mean of the adapters is exact.
"""

from scaling_fl.config.schema import Config
from scaling_fl.federated.algorithms import Resting, Start
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.selection import positions


def used(config: Config) -> bool:
    """See the package."""
    return config.lora_aggregation == "alternate"


def begin(start: Start) -> Resting:
    """See the package."""
    resident = start.site.resident
    resting, layout = MATRIX_A if start.round % 2 else MATRIX_B, resident.model.layout
    return Resting(positions(layout, [e.name for e in layout.entries if resting in e.name]).to(resident.device))
