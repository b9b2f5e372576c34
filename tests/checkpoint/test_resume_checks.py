import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest

from scaling_fl.checkpoint import resume
from scaling_fl.checkpoint.header import check_header
from scaling_fl.checkpoint.resume import agree_on_threads, check_finite, check_origin, expected_site_state
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.local_optimiser import site_state_template
from tests import builders

VALID: dict[str, Any] = {
    "job_name": "j", "round": 3, "threads": 1, "data_digest": "d", "environment": {}, "reported": True, "metrics": {},
    "config": {"site_ids": [0], "num_rounds": 3}, "history": {"1": {"train.loss": 0.5}, "2": {}},
    "best": {"metric": "validation.loss", "round": 2, "value": 0.5},
    "origin": {"weights": "w", "architecture": {}, "tokens": "t", "padding": [False, 1]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("job_name", 3), ("round", "3"), ("round", True), ("round", None), ("threads", 0), ("threads", 1.0), ("data_digest", 5),
        ("environment", []), ("reported", 1), ("metrics", None), ("config", []), ("config", {"site_ids": (0,)}),
        ("history", []), ("history", {"one": {}}), ("history", {"-1": {}}), ("history", {"1.5": {}}), ("history", {"1": 0.5}),
        ("best", {}), ("best", {"metric": "validation.loss", "round": 2}), ("best", 2),
        ("best", {"metric": "validation.loss", "round": 2, "value": "0.5"}),
        ("origin", []), ("origin", {"weights": "w"}), ("origin", VALID["origin"] | {"padding": "right"}),
    ],
)  # fmt: skip
def test_a_header_of_another_program_is_refused_with_the_field_that_is_wrong(key: str, value: object) -> None:
    check_header("here", VALID)
    named = "site_ids, num_rounds" if value == {"site_ids": (0,)} else key
    with pytest.raises(UserError, match=f"^here: the header of this checkpoint is invalid: {named} is missing or of"):
        check_header("here", VALID | {key: value})


@pytest.mark.parametrize("without", ["best", "origin"])
def test_a_header_needs_neither_a_best_round_nor_an_origin(without: str) -> None:
    check_header("here", {key: value for key, value in VALID.items() if key != without})
    check_header("here", VALID | {without: None})
    unpadded = {key: value for key, value in VALID["origin"].items() if key != "padding"}
    check_header("here", VALID | {"origin": unpadded})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_tensor_with_a_value_that_is_not_finite_is_named(value: float) -> None:
    good, bad = np.ones((3, 2), np.float32), np.ones((3, 2), np.float32)
    bad[1, 1] = value
    with pytest.raises(UserError, match=r"round 3: classifier\.weight contains NaN or infinite values"):
        check_finite("round 3", {"classifier.bias": good, "classifier.weight": bad})
    check_finite("round 3", {"a": good, "large": np.full(9, 3e38, np.float32), "integer": np.arange(4)})


def test_only_sites_that_have_state_in_a_checkpoint_are_expected_to_have_it() -> None:
    """Of three sites, 0 and 2 have trained; the tensors of other sites than 0 … 2 aren't expected."""
    config, layout = Config(keep_optimiser=True, optimiser="rmsprop"), builders.flat_model().layout
    saved = {name: np.zeros(1) for name in ("site_0.optimiser.0.step", "site_2.optimiser.0.step", "site_20.x", "bias")}
    expected = expected_site_state(config, layout, 3, saved)
    template = site_state_template(config, layout)
    assert expected.keys() == {f"site_{site}.{name}" for site in (0, 2) for name in template}
    assert all(array.shape == template[name.partition(".")[2]].shape for name, array in expected.items())


@pytest.mark.parametrize(
    ("threads_per_site", "now", "used", "notes"),
    [(None, 8, 3, 0), (3, 3, 3, 0), (8, 8, 8, 1)],
)
def test_a_job_keeps_its_threads_unless_the_user_says_otherwise(
    threads_per_site: int | None, now: int, used: int, notes: int
) -> None:
    said: list[str] = []
    assert agree_on_threads(Config(threads_per_site=threads_per_site), now, {"threads": 3}, said) == used
    assert len(said) == notes
    assert all(note.startswith("threads_per_site was 3, is now 8: ") for note in said)


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        ({}, [False, 1], None),
        ({}, [True, 1], r"padding was \[False, 1\], is now \[True, 1\]"),  # XLNet in 0.1.0
        ({"padding": [True, 1]}, [True, 1], None),
        ({"padding": [False, 8]}, [False, 1], r"padding was \[False, 8\], is now \[False, 1\]"),
        ({"padding": [False, 8]}, None, None),  # not known yet
    ],
)
def test_a_job_goes_on_with_the_padding_that_it_started_with(
    before: dict[str, Any], now: list[Any] | None, message: str | None
) -> None:
    origin: dict[str, Any] = {"weights": "w", "architecture": {}}
    header = {"origin": origin | {"tokens": "t"} | before, "config": {"model": "m"}}
    found = origin | ({} if now is None else {"padding": now})
    with contextlib.nullcontext() if message is None else pytest.raises(UserError, match=message):
        check_origin(Config(), header, found)
    check_origin(Config(), header | {"origin": None}, found)


@pytest.mark.parametrize(("cohort", "refused"), [(2, False), (3, True)])
def test_a_cohort_that_earlier_versions_drew_as_well_goes_on(cohort: int, refused: bool) -> None:
    """Of three sites; their headers have no `cohort_rules`."""
    config = Config(job_name="j", num_sites=3, site_ids=(-1,), sampling="by_examples", sites_per_round=cohort)
    header = {"job_name": "j", "config": config.to_mapping(), "data_digest": "d"}
    with pytest.raises(UserError, match="a cohort of all 3 sites was not") if refused else contextlib.nullcontext():
        resume._check_same_job(config, header, "d", 3)
    uniform = dataclasses.replace(config, sampling="uniform")
    with contextlib.nullcontext() if refused else pytest.raises(UserError, match="sampling was 'by_examples'"):
        resume._check_same_job(uniform, header, "d", 3)
