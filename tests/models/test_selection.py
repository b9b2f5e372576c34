"""Parameters that keys select by name: the head, or a regular expression."""

import pytest

from scaling_fl.errors import UserError
from scaling_fl.models import selection
from tests import builders

NAMES = ["bert.layer.0.weight", "bert.layer.10.weight", "bert.pooler.bias", "classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("head", NAMES[3:]), (r"layer\.1", NAMES[1:2]), ("layer", NAMES[:2]), ("bias$", [NAMES[2], NAMES[4]]),
        (".", NAMES),
    ],
)  # fmt: skip
def test_parameters_are_selected_by_name(which: str, expected: list[str]) -> None:
    assert selection.select("personal", which, NAMES, "bert") == expected


def test_wrong_selections_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainable=lyer: selects none .* bert.layer.0.weight, .*classifier.bias"):
        selection.select("trainable", "lyer", NAMES, "bert")
    many = [f"bert.layer.{number}.weight" for number in range(9)] + NAMES[3:]
    first, last = ", ".join(many[:4]), ", ".join(NAMES[3:])
    with pytest.raises(UserError) as error:
        selection.select("trainable", "lyer", many, "bert")
    assert f"which are {first}, …, {last}; correct" in str(error.value)
    with pytest.raises(UserError, match=r"personal=\(: not a regular expression \(.*\); write head, or"):
        selection.select("personal", "(", NAMES, "bert")
    with pytest.raises(UserError, match=r"personal=.: selects all parameters, .* set baseline=local_only"):
        selection.personal_positions(builders.flat_model().layout, ".")
