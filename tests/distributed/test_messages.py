import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.distributed.messages import SafeUnpickler
from scaling_fl.federated.metrics import BatchMetrics, SiteMetrics


def load(data: bytes) -> Any:
    return SafeUnpickler(io.BytesIO(data)).load()


def test_metrics_arrays_and_plain_values_arrive_as_they_were_sent() -> None:
    site = SiteMetrics(3, 1.5, 2, 4)
    assert load(pickle.dumps([site, None, "text", 1.25, {"a": (1, b"2")}])) == [
        site,
        None,
        "text",
        1.25,
        {"a": (1, b"2")},
    ]
    for dtype in (np.int64, np.float32, np.bool_):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        for order in (array, array.T):
            received = load(pickle.dumps(order))
            assert (received.dtype, received.tolist()) == (dtype, order.tolist())
    batch = load(pickle.dumps(BatchMetrics(1, 0.5, 3, 4, np.eye(3, dtype=np.int64))))
    assert (batch.batch, batch.loss_sum, batch.num_correct, batch.count) == (1, 0.5, 3, 4)
    assert batch.confusion.tolist() == np.eye(3).tolist()


class Calls:
    """Pickles as a call of `function`, which an unrestricted unpickler would make."""

    def __init__(self, function: Any, *arguments: Any):
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    "function", [os.system, eval, getattr, np.load, np.fromfile, pickle.loads, Path, np.save, np.memmap, Calls]
)  # fmt: skip
def test_nothing_else_is_unpickled(function: Any, tmp_path: Path) -> None:
    target = tmp_path / "written"
    with pytest.raises(pickle.UnpicklingError, match="is not a class that workers may send each other"):
        load(pickle.dumps(Calls(function, f"touch {target}")))
    assert not target.exists()


def test_a_class_of_an_allowed_module_is_refused_all_the_same() -> None:
    for name in ("scaling_fl.federated.metrics validation", "numpy dtypes", "numpy._core.multiarray fromfile"):
        module, _, attribute = name.partition(" ")
        data = f"c{module}\n{attribute}\n.".encode()
        with pytest.raises(pickle.UnpicklingError, match="may send each other"):
            load(data)
