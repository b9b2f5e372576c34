"""Charts of many jobs: means and spreads, and what is drawn where."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.reporting.charts import (
    costs,
    sweep_coordinates,
    sweep_curves,
    sweep_heat_map,
    sweep_scaling,
)
from tests.reporting import builders
from tests.reporting.test_charts import data_of, texts_of

ALL = (sweep_curves, sweep_heat_map, sweep_coordinates, sweep_scaling)


def encodings(chart: Any) -> dict[str, str]:
    """Channel -> field of the charts' layers and panels."""
    specification = chart.to_dict()
    found = dict(specification.get("facet", {}).items()) if "spec" in specification else {}
    found = {"panels": found} if "field" in found else found
    for layer in specification.get("spec", specification)["layer"]:
        found |= layer["encoding"]
    return {
        name: channel["field"] for name, channel in found.items() if isinstance(channel, dict) and "field" in channel
    }


def test_the_spread_over_seeds_is_a_standard_deviation_from_three_jobs_on(tmp_path: Path) -> None:
    ends = {1: [0.5, 0.5, 0.75], 2: [0.25, 0.75], 4: [0.625]}
    cells = [{"num_sites": n, "seed": seed, "end": end} for n, all_ in ends.items() for seed, end in enumerate(all_)]
    rows = data_of(sweep_scaling.draw(builders.sweep(tmp_path, *cells)))
    found = {row["num_sites"]: (row["mean"], row["low"], row["high"], row["seeds"]) for row in rows if row["mean"]}
    mean = (0.5 + 0.5 + 0.75) / 3
    deviation = math.sqrt((2 * (0.5 - mean) ** 2 + (0.75 - mean) ** 2) / 2)
    assert found[1] == pytest.approx((mean, mean - deviation, mean + deviation, 3))
    assert found[2] == (0.5, 0.25, 0.75, 2)
    assert found[4] == (0.625, 0.625, 0.625, 1)
    single = [(row["num_sites"], row["single"]) for row in rows if row["single"]]
    assert sorted(single) == [(1, 0.5), (1, 0.5), (1, 0.75), (2, 0.25), (2, 0.75), (4, 0.625)]


def test_a_cell_weighs_settings_equally_however_many_seeds_they_have(tmp_path: Path) -> None:
    ends = {("iid", 1): [0.5, 0.75, 0.25], ("by_label", 1): [0.125], ("iid", 2): [0.25], ("iid", 4): [1.0, 0.5]}
    cells = [
        {"model": model, "partition": partition, "num_sites": n, "resolved": {"num_sites": n}, "seed": seed, "end": end}
        for model in ("albert", "bert", "distilbert")
        for (partition, n), all_ in ends.items()
        for seed, end in enumerate(all_)
    ]
    chart = sweep_heat_map.draw(builders.sweep(tmp_path, *cells))
    found = {(row["num_sites"], row["model"]): (row["result"], row["groups"]) for row in data_of(chart)}
    # One site: 0.5 from three seeds of iid and 0.125 from the only one of by_label; 0.40625 if jobs weighed equally.
    assert found == {
        (n, model): value
        for model in ("albert", "bert", "distilbert")
        for n, value in ((1, (0.3125, 2)), (2, (0.25, 1)), (4, (0.75, 1)))
    }
    axes = [chart.to_dict()["layer"][0]["encoding"][name] for name in ("x", "y")]
    assert {axis["field"]: axis["sort"] for axis in axes} == {
        "num_sites": [1, 2, 4], "model": ["albert", "bert", "distilbert"],
    }  # fmt: skip
    assert {"0.31", "0.25", "0.75"} <= set(texts_of(chart).split(" | "))


def test_jobs_that_have_not_completed_have_no_final_accuracy(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"num_sites": n, "model": model, "end": n / 8} for n in (1, 2, 4) for model in ("bert", "albert")
    ]
    cells += [
        {"num_sites": 4, "model": "bert", "seed": 9, "end": 0.875, "ending": ending} for ending in (None, "interrupted")
    ]
    found = builders.sweep(tmp_path, *cells)
    rows = data_of(sweep_scaling.draw(found))
    assert {row["group"]: row["mean"] for row in rows if row["mean"]} == {
        f"num_sites={n}, model={model}": n / 8 for n in (1, 2, 4) for model in ("bert", "albert")
    }
    assert max(row["result"] for row in data_of(sweep_heat_map.draw(found))) == 0.5
    assert max(row["mean"] for row in data_of(sweep_coordinates.draw(found)) if "mean" in row) == 0.5


@pytest.mark.parametrize(
    "cells",
    [
        [{}],
        [{"seed": 1}, {"seed": 2}, {"data_seed": 3}],
        [{"site_ids": (0, 0)}, {"site_ids": (0, 1), "resolved": {"num_sites": 2, "devices": ["cuda:0", "cuda:1"]}}],
    ],
)
def test_jobs_that_differ_in_nothing_that_matters_are_no_sweep(tmp_path: Path, cells: list[dict[str, Any]]) -> None:
    found = builders.sweep(tmp_path, *cells)
    assert [chart.draw(found) for chart in ALL] == [None] * 4


def test_charts_are_left_out_where_the_keys_do_not_suit_them(tmp_path: Path) -> None:
    words = builders.sweep(tmp_path, {"model": "bert"}, {"model": "albert"})
    assert sweep_curves.draw(words) is not None
    assert [chart.draw(words) for chart in (sweep_scaling, sweep_heat_map, sweep_coordinates)] == [None] * 3
    running = builders.sweep(tmp_path / "r", {"num_sites": 1, "ending": None}, {"num_sites": 2, "ending": None})
    assert sweep_curves.draw(running) is not None
    assert [chart.draw(running) for chart in (sweep_scaling, sweep_heat_map, sweep_coordinates)] == [None] * 3


def test_charts_follow_the_layout(tmp_path: Path) -> None:
    found = builders.sweep(
        tmp_path,
        *(
            {"model": model, "num_sites": n, "partition": partition, "resolved": {"num_sites": n, "sites_per_round": n}}
            for model in ("albert", "bert", "distilbert")
            for n in (1, 2, 4, 8)
            for partition in ("iid", "by_label")
        ),
    )
    curves, scaling = sweep_curves.draw(found), sweep_scaling.draw(found)
    expected = {
        "color": "num_sites",
        "column": "partition",
        "row": "model",
        "x": "round",
        "y": "mean",
        "detail": "group",
    }
    assert encodings(curves).items() >= expected.items()
    facet = curves.to_dict()["facet"]
    assert [facet[name]["title"] for name in ("column", "row")] == ["partition", "model"]
    assert facet["row"]["sort"] == ["albert", "bert", "distilbert"]
    assert encodings(scaling).items() >= {"color": "model", "shape": "model", "panels": "partition", "x": "x"}.items()
    assert {"test accuracy", "round", "number of sites", "by_label", "iid"} <= set(texts_of(curves).split(" | "))
    assert {"test accuracy", "number of sites", "partition", "albert", "8"} <= set(texts_of(scaling).split(" | "))


def test_without_a_number_of_sites_the_numbers_with_the_most_values_are_the_axis(tmp_path: Path) -> None:
    cells = [{"learning_rate": rate, "batch_size": size} for rate in (0.001, 0.01, 0.1) for size in (8, 16)]
    chart = sweep_scaling.draw(builders.sweep(tmp_path, *cells))
    assert {row["learning_rate"] for row in data_of(chart)} == {0.001, 0.01, 0.1}
    scale = chart.to_dict()["layer"][0]["encoding"]["x"]["scale"]
    assert (scale["type"], "base" in scale) == ("log", False)
    assert "learning rate" in texts_of(chart)


def test_an_axis_of_powers_of_two_doubles(tmp_path: Path) -> None:
    chart = sweep_scaling.draw(builders.sweep(tmp_path, *({"num_sites": n} for n in (1, 4, 8))))
    x = chart.to_dict()["layer"][0]["encoding"]["x"]
    assert (x["scale"]["type"], x["scale"]["base"], x["axis"]["values"]) == ("log", 2, [1, 4, 8])
    linear = sweep_scaling.draw(builders.sweep(tmp_path / "l", *({"num_sites": n} for n in (1, 3, 20))))
    assert "type" not in linear.to_dict()["layer"][0]["encoding"]["x"]["scale"]


def test_colours_are_set_apart_by_equal_steps_on_the_axis(tmp_path: Path) -> None:
    found = builders.sweep(
        tmp_path, *({"num_sites": n, "model": m} for n in (1, 2, 16) for m in ("albert", "bert", "distilbert"))
    )
    x = {(row["num_sites"], row["model"]): row["x"] for row in data_of(sweep_scaling.draw(found)) if row["mean"]}
    for n in (1, 2, 16):
        assert x[n, "bert"] == n  # the colour in the middle
        assert x[n, "albert"] * x[n, "distilbert"] == pytest.approx(n**2)
        assert math.log2(x[n, "distilbert"] / n) == pytest.approx(
            0.016 * 4
        )  # of the axis, which is four doublings long


def test_a_heat_map_needs_keys_whose_values_meet(tmp_path: Path) -> None:
    rates, decays = (0.1, 0.4, 0.2, 0.5, 0.3), (0.01, 0.02, 0.03, 0.04, 0.05)
    diagonal = [{"learning_rate": rate, "weight_decay": decay} for rate, decay in zip(rates, decays, strict=True)]
    assert sweep_heat_map.draw(builders.sweep(tmp_path, *diagonal)) is None
    cross = [{"learning_rate": 0.1, "weight_decay": decay} for decay in decays[1:]]
    chart = sweep_heat_map.draw(builders.sweep(tmp_path / "c", *diagonal, *cross))
    assert len(data_of(chart)) == 9  # of 25 cells


def test_parallel_axes_are_scaled_and_lines_lie_side_by_side(tmp_path: Path) -> None:
    rates = {0.001: 0.125, 0.01: 0.375, 0.1: 0.625}
    cells = [
        {"learning_rate": rate, "model": model, "end": end + (0.25 if model == "bert" else 0)}
        for rate, end in rates.items()
        for model in ("albert", "bert", "distilbert")
    ]
    cells += [{"learning_rate": 0.1, "model": "bert", "seed": 5, "end": 0.625}]  # the mean of two: 0.75
    chart = sweep_coordinates.draw(builders.sweep(tmp_path, *cells))
    places: dict[str, dict[int, float]] = {}
    for row in data_of(chart):
        if "group" in row:
            places.setdefault(row["group"], {})[row["at"]] = row["place"]
    assert len(places) == 9
    spread = 0.05 * 2 / 3  # three lines meet in each value, and the outer ones are two thirds of the spread away
    # Axes: model, learning rate (three decades), accuracy from 0.125 to 0.75. The worst line is lowest.
    assert places["model=albert, learning_rate=0.001"] == pytest.approx({0: -spread, 1: -spread, 2: 0})
    assert places["model=bert, learning_rate=0.01"] == pytest.approx(
        {0: 0.5, 1: 0.5 + spread, 2: (0.625 - 0.125) / 0.625}
    )
    assert places["model=bert, learning_rate=0.1"] == pytest.approx({0: 0.5 + spread, 1: 1 + spread, 2: 1})
    shown = set(texts_of(chart).split(" | "))
    assert {"model", "0.001", "0.1", "albert", "distilbert", "0.2", "0.4", "0.6"} <= shown


def test_two_hundred_jobs_are_legible(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    cells = [
        {"learning_rate": float(10 ** draw.uniform(-6, -3)), "batch_size": int(draw.choice([8, 16, 32, 64])),
         "model": str(draw.choice(["albert", "bert", "distilbert"])), "num_local_epochs": int(draw.integers(1, 4)),
         "num_sites": int(draw.choice([1, 2, 4, 8, 16, 32])), "end": float(draw.uniform()), "seed": number}
        for number in range(200)
    ]  # fmt: skip
    found = builders.sweep(tmp_path, *cells)
    spent = found.rounds[found.rounds["metric"] == "validation.accuracy"][["job", "round"]]
    charts = [*(module.draw(found) for module in ALL)]
    charts += [costs.draw(found._replace(costs=spent.assign(local_steps=5, examples=9, seconds=1.0, bytes=0.0)))]
    for chart in charts:
        assert chart is not None
        specification = chart.to_dict()
        facet = specification.get("facet", {})
        panels = [facet] if "field" in facet else list(facet.values())  # one key, or columns and rows
        shown = math.prod(len(channel["sort"]) for channel in panels)
        assert shown <= 12
        assert len(texts_of(chart).split(" | ")) < 130
    colours = [chart.to_dict()["spec"]["layer"][0]["encoding"]["color"]["type"] for chart in charts[:1]]
    assert colours == ["quantitative"]  # 200 learning rates are a scale, not a list
    job_names = [text for text in texts_of(charts[-1]).split(" | ") if "job" in text or "=" in text]
    assert job_names == []
