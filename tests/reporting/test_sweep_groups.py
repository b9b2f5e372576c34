"""Which keys a sweep has, and where `panels.layout` puts them."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from scaling_fl.reporting.charts import differences, groups, panels
from tests.reporting import builders

STUDY = {"model": 3, "num_sites": 6, "partition": 2}  # key -> number of values


def sweep_of(**sizes: int) -> groups.Sweep:
    """A sweep with so many values of each key: numbers, but for those in `words`."""
    words = ("model", "partition", "task_name", "optimiser", "dataset")
    keys = {
        key: [f"{key}{n}" for n in range(size)] if key in words else [2**n for n in range(size)]
        for key, size in sizes.items()
    }
    return groups.Sweep(pd.DataFrame(), keys)


@pytest.mark.parametrize(
    ("sizes", "taken", "colour", "dash", "columns", "rows"),
    [
        (STUDY, (), "num_sites", None, "partition", "model"),
        (STUDY, ("num_sites",), "model", None, "partition", None),
        (STUDY | {"task_name": 4}, ("num_sites",), "model", None, "partition", "task_name"),
        (STUDY | {"task_name": 4}, (), "num_sites", "partition", "model", "task_name"),
        ({"task_name": 4}, (), "task_name", None, None, None),
        ({"model": 7}, (), "model", None, None, None),
        ({"model": 8}, (), None, None, "model", None),  # there are seven colours
        ({"model": 13}, (), None, None, None, None),  # and up to twelve panels
        ({"model": 3, "batch_size": 2}, (), "model", None, "batch_size", None),  # two numbers are no scale
        ({"model": 3, "batch_size": 3}, (), "batch_size", None, "model", None),
        ({"model": 4, "optimiser": 4, "num_sites": 5}, (), "num_sites", None, "model", None),  # 16 panels are too many
        ({"batch_size": 3, "model": 4, "optimiser": 4}, (), "batch_size", None, "model", None),
        ({"model": 2, "optimiser": 7, "num_sites": 9}, (), "num_sites", None, "model", None),  # more than six rows
        ({"learning_rate": 200}, (), "learning_rate", None, None, None),
    ],
)
def test_colour_panels_and_dashes(
    sizes: dict[str, int], taken: tuple[str, ...], colour: str, dash: str, columns: str, rows: str
) -> None:
    assert panels.layout(sweep_of(**sizes), taken) == (colour, dash, columns, rows)


def test_keys_that_vary_in_lock_step_count_as_one(tmp_path: Path) -> None:
    found = builders.sweep(
        tmp_path,
        *(
            {"site_ids": (-1,) * n, "iid_split": iid, "model": model, "learning_rate": rate, "seed": n,
             "resolved": {"num_sites": n, "sites_per_round": n, "processes": n, "partition": "iid" if iid else "by_label"}}
            for n in (1, 2, 4)
            for iid in (True, False)
            for model, rate in (("bert", 0.25), ("albert", 0.5), ("distilbert", 0.5))
        ),
    )  # fmt: skip
    sweep = groups.find(found)
    assert sweep is not None
    assert sweep.keys == {
        "model": ["albert", "bert", "distilbert"], "num_sites": [1, 2, 4], "partition": ["by_label", "iid"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([(0.1, 8), (0.2, 16), (0.4, 32)], ["learning_rate"]),  # raised together
        ([(0.4, 8), (0.2, 16), (0.1, 32)], ["learning_rate"]),  # against each other
        ([(0.1, 16), (0.2, 8), (0.4, 32)], ["learning_rate", "batch_size"]),  # numbers drawn at random
        ([(0.1, 8), (0.2, 8), (0.4, 32)], ["learning_rate", "batch_size"]),
        ([(0.1, 8), (0.1, 16), (0.2, 8), (0.2, 16)], ["learning_rate", "batch_size"]),
    ],
)
def test_numbers_are_in_lock_step_if_their_order_is_the_same(
    tmp_path: Path, rows: list[tuple[float, int]], kept: list[str]
) -> None:
    sweep = groups.find(builders.sweep(tmp_path, *({"learning_rate": rate, "batch_size": size} for rate, size in rows)))
    assert sweep is not None
    assert sorted(sweep.keys, reverse=True) == kept


def test_the_size_of_a_cohort_follows_from_sites_and_participation(tmp_path: Path) -> None:
    cells = [
        {"num_sites": n, "participation": share, "resolved": {"num_sites": n, "sites_per_round": int(n * share)}}
        for n in (2, 4, 8)
        for share in (0.5, 1.0)
    ]
    sweep = groups.find(builders.sweep(tmp_path, *cells))
    assert sweep is not None
    assert sweep.keys == {"num_sites": [2, 4, 8], "participation": [0.5, 1.0]}


def test_a_partition_includes_its_own_keys(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [{"partition": "iid"}, {"partition": "by_label"}]
    cells += [{"partition": "dirichlet", "alpha": alpha} for alpha in (1.0, 0.25)]
    sweep = groups.find(builders.sweep(tmp_path, *cells))
    assert sweep is not None
    assert sweep.keys == {"partition": ["by_label", "dirichlet alpha=0.25", "dirichlet alpha=1", "iid"]}
    alone = groups.find(builders.sweep(tmp_path / "a", *cells[2:]))
    assert alone is not None
    assert alone.keys == {"alpha": [0.25, 1.0]}


def test_values_in_words(tmp_path: Path) -> None:
    models = ("google/bert-tiny", "prajjwal1/bert-mini")
    found = builders.sweep(
        tmp_path, *({"model": m, "max_grad_norm": norm} for m in models for norm in (None, 10.0, 9.0))
    )
    sweep = groups.find(found)
    assert sweep is not None
    assert sweep.keys == {"model": ["bert-mini", "bert-tiny"], "max_grad_norm": ["9", "10", "not set"]}
    assert not sweep.is_numeric("max_grad_norm")
    assert [groups.as_text(value) for value in (5e-6, 2e-5, 0.0003, 8, 1.5, 3e12)] == [
        "5e-6", "2e-5", "0.0003", "8", "1.5", "3e12"
    ]  # fmt: skip


def test_the_number_of_sites_stands_for_keys_in_lock_step_with_it(tmp_path: Path) -> None:
    """As when each site is to have as many rows: the first in the documentation, whatever the order in records."""
    cells = [
        {"num_sites": n, "max_train_examples": 16 * n, "resolved": {"num_sites": n}, "eval_every": n} for n in (1, 2, 4)
    ]
    sweep = groups.find(builders.sweep(tmp_path, *cells))
    assert sweep is not None
    assert sweep.keys == {"num_sites": [1, 2, 4]}


def test_a_case_stands_for_the_keys_that_follow_from_it(tmp_path: Path) -> None:
    """Even for two cases that differ in one key, and beside a key that varies within each case."""
    prox = {"case": "FedProx", "proximal_mu": 0.5, "batch_size": 3}
    found = builders.sweep(
        tmp_path,
        *(keys | {"num_sites": sites} for keys in ({"case": "FedAvg"}, prox) for sites in (2, 4)),
    )
    assert differences.differing_keys(found.runs) == ["case", "num_sites"]
    sweep = groups.find(found)
    assert sweep is not None
    assert sweep.keys == {"case": ["FedAvg", "FedProx"], "num_sites": [2, 4]}
    (tmp_path / "other").mkdir()
    without = builders.sweep(tmp_path / "other", {"case": "FedAvg"}, {"proximal_mu": 0.5})
    assert set(differences.differing_keys(without.runs)) == {"case", "proximal_mu"}, "not every job is of a case"
