"""RoLoRA (Chen et al. 2024): in odd rounds B is trained and A rests, in even rounds the reverse.

All sites of a round have the same A, or the same B. So mean(B_k A) = mean(B_k) A: the mean of the adapters is exact.
"""

from scaling_fl.federated.algorithms import Resting, Start
from scaling_fl.models.adapters import MATRIX_A, MATRIX_B
from scaling_fl.models.selection import positions


def begin(start: Start) -> Resting | None:
    """See the package."""
    resident = start.site.resident
    if resident.config.lora_aggregation != "alternate":
        return None
    resting, layout = MATRIX_A if start.round % 2 else MATRIX_B, resident.model.layout
    return Resting(positions(layout, [e.name for e in layout.entries if resting in e.name]).to(resident.device))
