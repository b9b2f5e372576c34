"""Charts and tables compare jobs by what their task measures."""

from pathlib import Path
from typing import Any

import pytest

from scaling_fl.reporting import figures, outcomes
from scaling_fl.reporting.charts import costs, sweep_curves, sweep_heat_map
from scaling_fl.sweep import results
from tests.reporting import builders

CHOICES = ("validation.choice_accuracy", "test accuracy of choices", "accuracy")
PERPLEXITY = ("validation.perplexity", "test perplexity", "perplexity")
ACCURACY = ("validation.accuracy", "test accuracy", "accuracy")

SHARDS = [{"site": 0, "examples": 3}, {"site": 1, "examples": 5}]


def _cells(*metrics: str) -> list[dict[str, Any]]:
    """Four jobs, each with the same values of all `metrics` after round 1."""
    values = [0.125, 0.25, 0.375, 0.5]
    grid = [(sites, rate) for sites in (2, 4) for rate in (0.5, 0.25)]
    return [
        {"num_sites": sites, "learning_rate": rate, "others": {name: [value] for name in metrics}, "shards": SHARDS}
        for (sites, rate), value in zip(grid, values, strict=True)
    ]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        ((), ACCURACY),
        (("validation.perplexity",), PERPLEXITY),
        (("validation.perplexity", "validation.choice_accuracy"), CHOICES),
    ],
)
def test_charts_of_a_sweep_show_what_the_task_measures(
    tmp_path: Path, metrics: tuple[str, ...], expected: tuple[str, str, str]
) -> None:
    found = builders.sweep(tmp_path, *_cells(*metrics))
    assert outcomes.compared(found) == expected
    for name in ("sweep_scaling", "sweep_curves", "sweep_heat_map", "sweep_coordinates"):
        chart = figures.module(name).draw(found).to_dict()
        assert expected[1].lower() in str(chart["title"]).lower()
        others = {title for _, title, _ in (CHOICES, PERPLEXITY, ACCURACY)} - {expected[1]}
        assert not [title for title in others if f"'{title}'" in str(chart)], name
    heat = sweep_heat_map.draw(found)
    shown = sorted(row["result"] for rows in heat.to_dict()["datasets"].values() for row in rows)
    assert shown == ([0.125, 0.25, 0.375, 0.5] if metrics else [0.5] * 4)


def test_curves_and_costs_take_the_values_of_the_same_measure(tmp_path: Path) -> None:
    found = builders.sweep(tmp_path, *_cells("validation.perplexity"))
    rows = [row for rows in sweep_curves.draw(found).to_dict()["datasets"].values() for row in rows]
    assert sorted(row["mean"] for row in rows) == [0.125, 0.25, 0.375, 0.5]
    drawn = costs.draw(found)
    assert drawn is not None
    assert drawn.to_dict()["title"].startswith("Test perplexity against")
    rows = [row for rows in drawn.to_dict()["datasets"].values() for row in rows]
    assert sorted({row["value"] for row in rows}) == [0.125, 0.25, 0.375, 0.5]


def test_jobs_without_the_measure_are_compared_by_accuracy(tmp_path: Path) -> None:
    cells = _cells("validation.choice_accuracy")
    del cells[1]["others"]
    assert outcomes.compared(builders.sweep(tmp_path, *cells)) == ACCURACY


def test_jobs_without_any_results_have_no_say(tmp_path: Path) -> None:
    waiting = {"num_sites": 8, "learning_rate": 0.5, "accuracies": [], "ending": None}
    found = builders.sweep(tmp_path, *_cells("validation.perplexity"), waiting)
    assert len(found.runs) == 5
    assert outcomes.compared(found) == PERPLEXITY


def test_tables_name_the_measures_of_language_models(tmp_path: Path) -> None:
    found = builders.sweep(tmp_path, *_cells("validation.perplexity", "validation.choice_accuracy"))
    table = results.as_table(results.aggregated(found.runs, ["num_sites", "learning_rate"]))
    assert list(table.columns) == [
        "num_sites", "learning_rate", "seeds", "test accuracy of choices", "test accuracy of tokens", "test perplexity",
    ]  # fmt: skip
    assert table["test accuracy of choices"].tolist() == ["0.1250", "0.2500", "0.3750", "0.5000"]
    assert table["test accuracy of tokens"].tolist() == ["0.5000"] * 4
    plain = builders.sweep(tmp_path / "plain", *_cells())
    table = results.as_table(results.aggregated(plain.runs, ["num_sites", "learning_rate"]))
    assert list(table.columns) == ["num_sites", "learning_rate", "seeds", "test accuracy"]
