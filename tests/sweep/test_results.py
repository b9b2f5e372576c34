"""Means and deviations over seeds, and the tables of a sweep."""

import math
from pathlib import Path

import pandas as pd
import pytest

from scaling_fl.sweep import cells, results
from tests.reporting import builders

ROWS = pd.DataFrame(
    {
        "num_sites": [2, 2, 2, 8, 8],
        "seed": [1, 2, 3, 1, 2],
        "validation.accuracy": [0.5, 0.75, 1.0, 0.25, 0.5],
        "validation.loss": [1.0, 1.0, 1.0, 2.0, 4.0],
    }
)


def test_results_are_averaged_over_unequal_numbers_of_seeds() -> None:
    found = results.aggregated(ROWS, ["num_sites", "seed"]).set_index(["num_sites", "metric"])
    assert found.loc[(2, "validation.accuracy")].tolist() == [0.75, 0.25, 3]
    assert found.loc[(8, "validation.accuracy")].tolist() == pytest.approx([0.375, math.sqrt(2) / 8, 2])
    assert found.loc[(8, "validation.loss")].tolist() == pytest.approx([3.0, math.sqrt(2), 2])
    assert len(found) == 4
    single = results.aggregated(ROWS.head(1), ["num_sites", "seed"])
    assert single["std"].isna().all()


def test_tables_are_written_for_readers_and_papers() -> None:
    table = results.as_table(results.aggregated(ROWS, ["num_sites", "seed"]))
    assert results.markdown(table).splitlines() == [
        "| num_sites | seeds | test accuracy | test loss |",
        "| --- | --- | --- | --- |",
        "| 2 | 3 | 0.7500 ± 0.2500 | 1.0000 ± 0.0000 |",
        "| 8 | 2 | 0.3750 ± 0.1768 | 3.0000 ± 1.4142 |",
    ]
    text = results.latex(table, r"50 % of a~b^\c")
    assert r"num\_sites & seeds & test accuracy & test loss \\" in text
    assert r"8 & 2 & 0.3750 $\pm$ 0.1768 & 3.0000 $\pm$ 1.4142 \\" in text
    assert r"\caption{50 \% of a\textasciitilde{}b\textasciicircum{}\textbackslash{}c}" in text


def test_seeds_whose_loss_is_no_number_are_told() -> None:
    rows = ROWS.assign(**{"validation.loss": [1.0, math.nan, 3.0, math.nan, math.nan]})
    table = results.as_table(results.aggregated(rows, ["num_sites", "seed"]))
    assert table.to_numpy().tolist() == [
        ["2", "3", "0.7500 ± 0.2500", "2.0000 ± 1.4142 (2 of 3)"],
        ["8", "2", "0.3750 ± 0.1768", "not a number (0 of 2)"],
    ]


def test_metrics_that_only_some_settings_have_are_left_empty() -> None:
    """Sites have models of their own in one setting only."""
    rows = ROWS.assign(**{"personal.mean_site.accuracy": [0.5, 0.75, 0.25, math.nan, math.nan]})
    table = results.as_table(results.aggregated(rows, ["num_sites", "seed"]))
    assert table["own models: mean site"].tolist() == ["0.5000 ± 0.2500", ""]


def test_a_setting_that_leaves_a_key_out_has_results() -> None:
    rows = ROWS.assign(server_momentum=[math.nan, math.nan, math.nan, 0.5, 0.5])  # pandas has NaN for None
    table = results.as_table(results.aggregated(rows, ["server_momentum", "seed"]))
    assert table[["server_momentum", "seeds", "test accuracy"]].to_numpy().tolist() == [
        ["", "3", "0.7500 ± 0.2500"],
        ["0.5", "2", "0.3750 ± 0.1768"],
    ]


def test_begun_cells_are_listed_and_complete_ones_are_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = {"batch_size": 4, "num_local_epochs": 2, "num_sites": 3, "checkpoints_dir": None, "num_rounds": 2}
    rows = [{"learning_rate": rate, "seed": seed} for rate in (0.5, 0.25) for seed in (1, 2)]
    of_sweep = cells.named_cells("s", base, rows)
    (tmp_path / "runs" / "_events").mkdir(parents=True)
    other = cells.named_cells("s", base | {"max_seq_len": 99}, rows)[3]
    builders.job(tmp_path / "runs" / "_events", other.name, 2, max_seq_len=99, **other.varied)  # of an earlier sweep
    for cell, rounds in zip(of_sweep[:3], (2, 2, 1), strict=True):  # the third isn't complete, the fourth hasn't begun
        builders.job(tmp_path / "runs" / "_events", cell.name, rounds, loss=0.5, **cell.varied)
    paths = results.write("s", of_sweep, tmp_path / "out")
    assert [path.name for path in paths] == [
        "cells.csv", "results.csv", "results.parquet", "results.md", "results.tex", "report.html",
    ]  # fmt: skip
    listed = pd.read_csv(tmp_path / "out" / "cells.csv")
    assert listed["complete"].tolist() == [True, True, False]
    # 1,000 parameters of 4 bytes to 3 sites and back, in each of 2, 2 and 1 rounds.
    assert listed["bytes"].tolist() == [48_000, 48_000, 24_000]
    tidy = pd.read_csv(tmp_path / "out" / "results.csv")
    accuracy = tidy[tidy["metric"] == "validation.accuracy"]
    assert accuracy[["learning_rate", "mean", "std", "n"]].to_numpy().tolist() == [[0.5, 0.75, 0.0, 2]]
    assert pd.read_parquet(tmp_path / "out" / "results.parquet").shape == tidy.shape
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_nothing_is_written_before_a_cell_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results.write("s", cells.named_cells("s", {}, [{"seed": 1}]), tmp_path / "out") == []
    assert not (tmp_path / "out").exists()


def test_a_bar_in_a_value_is_no_border_of_the_table() -> None:
    table = pd.DataFrame({"lora_targets": ["query|value"], "seeds": ["3"]})
    assert results.markdown(table).splitlines()[2] == r"| query\|value | 3 |"
