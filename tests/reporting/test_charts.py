import importlib
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import vl_convert

from scaling_fl.reporting import charts, figures, frames
from scaling_fl.reporting.charts import (
    confusion,
    costs,
    differences,
    label_counts,
    learning_curves,
    phases,
    shard_sizes,
)
from scaling_fl.reporting.charts import site_accuracy as site_accuracy_chart
from scaling_fl.reporting.frames import Frames
from tests.compatibility.test_earlier_files import EARLIER
from tests.reporting import builders

MODULES = {path.stem for path in Path(charts.__file__).parent.glob("*.py")} - {
    "__init__",
    "style",
    "differences",
    "groups",
    "panels",
    "scaling",
}


@pytest.fixture
def found(tmp_path: Path) -> Frames:
    return frames.load(builders.job(tmp_path))


def data_of(chart: Any) -> list[dict[str, Any]]:
    """All rows that the chart draws."""
    return [row for rows in chart.to_dict()["datasets"].values() for row in rows]


def texts_of(chart: Any) -> str:
    """The text in the picture, as a reader sees it."""
    svg = vl_convert.vegalite_to_svg(chart.to_json())
    return " | ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))


def test_every_chart_is_listed() -> None:
    assert set(charts.NAMES) == MODULES


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("learning_curves", ["round", "cross-entropy (nats)", "accuracy", "global model, test set"]),
        (
            "costs",
            ["test accuracy", "rounds", "local steps of all sites", "time (s)", "sent to and from sites (bytes)"],
        ),
        ("label_counts", ["site", "label", "sport", "art", "examples"]),
        ("shard_sizes", ["site, largest first", "training examples"]),
        ("site_accuracy", ["training accuracy of a site", "share of sites", "mean of the worst tenth"]),
        ("phases", ["round", "time (s)", "training", "waiting for the slowest site", "aggregation", "evaluation"]),
        ("confusion", ["true label", "predicted label", "sport", "7"]),
    ],
)
def test_axes_have_titles_with_units(tmp_path: Path, name: str, texts: list[str]) -> None:
    module = importlib.import_module(f"{charts.__name__}.{name}")
    shown = texts_of(module.draw(frames.load(builders.job(tmp_path, each="accuracy"))))
    assert module.TITLE.format(Measure="Test accuracy") in shown
    for text in texts:
        assert text in shown.split(" | "), f"{text}: {shown}"


def test_learning_curves_show_the_global_model_and_each_site(found: Frames) -> None:
    rows = data_of(learning_curves.draw(found))
    curve = [(row["round"], row["value"]) for row in rows if row.get("metric") == "validation.accuracy"]
    assert curve == [(0, 0.5), (1, 0.875), (2, 0.75)]
    assert {(row["site"], row["round"], row["value"]) for row in rows if "site" in row} == {
        (site, round_, site + round_ / 8) for site in range(3) for round_ in (1, 2)
    }


def test_the_band_of_learning_curves_reaches_from_the_worst_site_to_the_best(tmp_path: Path) -> None:
    ends = {"train.worst_site.accuracy": [0.25], "train.best_site.accuracy": [0.75]}
    found = frames.load(builders.cell(tmp_path, "job", [0.5, 0.5], others=ends))
    (band,) = [row for row in data_of(learning_curves.draw(found)) if row.get("what") == "worst to best site"]
    assert (band["round"], band["worst"], band["best"]) == (1, 0.25, 0.75)


def test_costs_compare_jobs_by_the_keys_in_which_they_differ(tmp_path: Path) -> None:
    paths = [builders.job(tmp_path, "a", learning_rate=0.5), builders.job(tmp_path, "b", learning_rate=0.25, seed=7)]
    found = frames.load(*paths)
    assert differences.differing_keys(found.runs) == ["learning_rate", "seed"]
    chart = costs.draw(found)
    rows = data_of(chart)
    assert {row["name"] for row in rows} == {"learning_rate=0.5, seed=20210201", "learning_rate=0.25, seed=7"}
    assert {row["seconds"] for row in rows} == {0.25, 3.0, 5.75}
    assert "learning_rate=0.25, seed=7" in texts_of(chart)
    alone = costs.draw(frames.load(paths[0]))
    assert "learning_rate" not in texts_of(alone)


def test_jobs_with_the_same_keys_are_called_by_name() -> None:
    runs = pd.DataFrame(
        [
            {"job": "a", "seed": 1, "alpha": None},
            {"job": "b", "seed": 1, "alpha": None},
            {"job": "c", "seed": 2, "alpha": 0.5},
        ]
    )
    assert differences.names(runs) == {"a": "a", "b": "b", "c": "alpha=0.5, seed=2"}
    assert differences.names(runs[1:]) == {"b": "seed=1", "c": "alpha=0.5, seed=2"}
    assert differences.names(runs[:2]) == {"a": "a", "b": "b"}


def test_shards_are_drawn_by_label_and_by_size(found: Frames) -> None:
    counts = {(row["site"], row["label"]): row["value"] for row in data_of(label_counts.draw(found))}
    assert counts == {(0, "sport"): 5, (0, "art"): 0, (1, "sport"): 4, (1, "art"): 5, (2, "sport"): 1, (2, "art"): 3}
    assert [(row["site"], row["value"]) for row in data_of(shard_sizes.draw(found))] == [(1, 9), (0, 5), (2, 4)]


def test_the_time_that_workers_wait_is_a_part_of_the_training(found: Frames) -> None:
    rows = data_of(phases.draw(found))
    assert {row["name"]: row["seconds"] for row in rows if row["round"] == 2} == {
        "training": 1.25, "waiting for the slowest site": 0.75, "aggregation": 0.5, "evaluation": 0.25
    }  # fmt: skip


def test_cells_of_the_confusion_matrix_are_shares_of_the_true_label(found: Frames) -> None:
    rows = data_of(confusion.draw(found))
    shares = {(row["label"], row["predicted"]): row["share"] for row in rows}
    expected = {("sport", "sport"): 3 / 4, ("sport", "art"): 1 / 4, ("art", "sport"): 2 / 9, ("art", "art"): 7 / 9}
    assert shares == pytest.approx(expected)
    both = pd.concat([found.confusion, found.confusion.assign(set="held_back", examples=8)])
    assert data_of(confusion.draw(found._replace(confusion=both))) == rows, "held-back rows aren't counted"


def test_accuracy_over_sites_has_mean_and_worst_tenth(tmp_path: Path) -> None:
    # Site s has the accuracy (s + 1) / 8 in the last round.
    rows = data_of(site_accuracy_chart.draw(frames.load(builders.job(tmp_path, each="accuracy"))))
    assert [(row["site"], row["value"]) for row in rows if "share" in row] == [(0, 0.125), (1, 0.25), (2, 0.375)]
    assert [row["share"] for row in rows if "share" in row] == pytest.approx([1 / 3, 2 / 3, 1])
    assert {row["what"]: row["value"] for row in rows if "what" in row} == {
        "mean of the sites": 0.25, "mean of the worst tenth": 0.125
    }  # fmt: skip


def test_what_a_record_lacks_is_not_drawn() -> None:
    assert figures.drawn(frames.of_records([])).keys() == set()
    assert figures.drawn(frames.load(EARLIER / "runs")).keys() == {
        "learning_curves", "costs", "shard_sizes", "site_accuracy", "phases"
    }  # fmt: skip


def test_a_label_that_never_occurs_has_shares_of_0(found: Frames) -> None:
    cells = found.confusion.assign(examples=[0, 0, 2, 6])
    shares = {
        (row["label"], row["predicted"]): row["share"]
        for row in data_of(confusion.draw(found._replace(confusion=cells)))
    }
    assert shares == {("sport", "sport"): 0, ("sport", "art"): 0, ("art", "sport"): 0.25, ("art", "art"): 0.75}


@pytest.mark.parametrize(
    ("kinds", "shown"),
    [(("train",), 0), (("train", "site_test"), 1), (("train", "site_test", "personal"), 2)],
)
def test_accuracy_over_sites_is_that_of_the_last_round_on_own_test_rows_if_there_are_any(
    tmp_path: Path, kinds: tuple[str, ...], shown: int
) -> None:
    """Twelve sites, in reversed order of accuracy: the worst tenth are two."""
    others = {
        f"site.{site}.{kind}.accuracy": [0.875, (11 - site + at) / 32] for site in range(12) for at, kind in enumerate(kinds)
    }  # fmt: skip
    rows = data_of(site_accuracy_chart.draw(frames.load(builders.cell(tmp_path, "job", [0.5] * 3, others=others))))
    assert [(row["site"], row["value"]) for row in rows if "share" in row] == [
        (11 - rank, (rank + shown) / 32) for rank in range(12)
    ]
    assert {row["what"]: row["value"] for row in rows if "what" in row} == {
        "mean of the sites": (5.5 + shown) / 32, "mean of the worst tenth": (0.5 + shown) / 32
    }  # fmt: skip
