"""The gradient of the mean cross-entropy over many examples, without dropout."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.federated.resident import Resident

_SCALE = 2.0**12  # so that small gradients don't vanish in fp16; a power of two changes nothing else


def full_gradient(resident: Resident, rows: npt.NDArray[np.int64]) -> torch.Tensor:
    """The gradient (trained,) at the parameters that the model holds: its buffer, valid until the next backward pass."""
    model = resident.model
    model.module.eval()
    count = int(resident.train.num_predictions[rows].sum())
    with model.new_gradient():
        for part in np.array_split(rows, -(-len(rows) // resident.config.batch_size)):
            batch = resident.to_device(resident.train.batch(part))
            loss = cross_entropy(resident.logits(batch), batch.labels, reduction="sum")
            (loss * (_SCALE / count)).backward()
            resident.on_alive()
    return model.gradient.div_(_SCALE)
