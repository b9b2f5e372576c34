import numpy as np
import pytest

from scaling_fl.checkpoint.resume import check_finite
from scaling_fl.errors import UserError


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_a_value_that_is_not_finite_is_named(value: float) -> None:
    good, bad = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    bad[1, 1] = value
    with pytest.raises(UserError, match=r"round 3: classifier\.weight contains NaN or infinite values"):
        check_finite("round 3", {"classifier.bias": good, "classifier.weight": bad})
    check_finite("round 3", {"a": good, "large": np.full(9, 3e38, np.float32), "integer": np.arange(4)})
