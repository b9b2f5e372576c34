"""Which rounds and seeds the curves of a sweep show."""

from pathlib import Path

from scaling_fl.reporting.charts import sweep_curves
from tests.reporting import builders
from tests.reporting.test_charts import data_of


def test_a_round_is_the_mean_over_the_seeds_that_have_reached_it(tmp_path: Path) -> None:
    found = builders.sweep(
        tmp_path,
        {"model": "bert", "seed": 1, "accuracies": [0.25, 0.5, 0.75]},
        {"model": "bert", "seed": 2, "accuracies": [0.5, 0.25], "num_rounds": 2, "ending": None},
        {"model": "albert", "seed": 1, "accuracies": [0.125, 0.25, 0.5]},
    )
    rows = data_of(sweep_curves.draw(found))
    assert [(row["round"], row["mean"], row["low"], row["high"]) for row in rows if row["model"] == "bert"] == [
        (0, 0.375, 0.25, 0.5), (1, 0.375, 0.25, 0.5), (2, 0.75, 0.75, 0.75)
    ]  # fmt: skip
    assert [(row["round"], row["mean"]) for row in rows if row["model"] == "albert"] == [
        (0, 0.125),
        (1, 0.25),
        (2, 0.5),
    ]


def test_rounds_that_only_some_seeds_evaluate_are_left_out(tmp_path: Path) -> None:
    found = builders.sweep(
        tmp_path,
        {"model": "bert", "seed": 1, "accuracies": [0.25, 0.5, 0.75]},
        {"model": "bert", "seed": 2, "accuracies": [0.5, 0.5, 0.25]},
        {"model": "albert", "seed": 1, "accuracies": [0.125, 0.25, 0.5]},
    )
    rounds = found.rounds
    job = found.runs.loc[(found.runs["model"] == "bert") & (found.runs["seed"] == 2), "job"].item()
    found = found._replace(rounds=rounds[(rounds["job"] != job) | (rounds["round"] != 1)])  # eval_every=2
    rows = data_of(sweep_curves.draw(found))
    assert [(row["round"], row["mean"]) for row in rows if row["model"] == "bert"] == [(0, 0.375), (2, 0.5)]
    assert [row["round"] for row in rows if row["model"] == "albert"] == [0, 1, 2]
