"""Pictures of the gradient norms that `log_gradient_norms=True` records."""

from pathlib import Path
from typing import Any

import pytest

from scaling_fl.reporting import frames
from scaling_fl.reporting.charts import gradient_norms, gradient_scaling, style
from tests.reporting import builders
from tests.reporting.test_charts import data_of, texts_of

LAYERS = ("bert.embeddings", "bert.encoder.layer.2", "bert.encoder.layer.10", "pre_classifier", "classifier")


def by_layer(first: float) -> dict[str, list[float]]:
    """Two rounds of norms: each layer has twice the norm of the one before."""
    norms = {f"gradient_norm.{name}": [first * 2**at, first * 2**at / 4] for at, name in enumerate(LAYERS)}
    return norms | {"gradient_norm.pretrained": [first, 99.0], "gradient_norm.head": [9.0, 9.0]}


def test_each_layer_is_a_line_from_the_first_to_the_last(tmp_path: Path) -> None:
    chart = gradient_norms.draw(frames.load(builders.cell(tmp_path, "job", [0.25, 0.5, 0.5], others=by_layer(0.5))))
    found = [(row["round"], row["name"], row["value"]) for row in data_of(chart)]
    names = ["embeddings", "layer 2", "layer 10", "pre_classifier", "classifier"]
    expected = [(round_, name, 0.5 * 2**at / 4 ** (round_ - 1)) for round_ in (1, 2) for at, name in enumerate(names)]
    assert sorted(found) == sorted(expected)
    assert chart is not None
    channels = chart.to_dict()["encoding"]
    assert channels["y"]["scale"]["type"] == "log"
    assert channels["color"]["scale"] == {"domain": names, "range": style.steps(5)}
    assert {"gradient norm", "round", *names} <= set(texts_of(chart).split(" | "))


def test_layers_that_would_share_a_name_keep_their_own(tmp_path: Path) -> None:
    norms = {"gradient_norm.a.layer.0": [1.0], "gradient_norm.b.layer.0": [2.0], "gradient_norm.c": [0.0]}
    found = frames.load(builders.cell(tmp_path, "job", [0.25, 0.5], others=norms))
    assert [row["name"] for row in data_of(gradient_norms.draw(found))] == ["a.layer.0", "b.layer.0"]


def test_the_head_follows_the_base_model(tmp_path: Path) -> None:
    norms = {f"gradient_norm.{name}": [1.0] for name in ("classifier.dense", "classifier.out_proj", "roberta.layer.0")}
    found = frames.load(builders.cell(tmp_path, "job", [0.25, 0.5], others=norms))
    chart = gradient_norms.draw(found)
    assert chart is not None
    assert chart.to_dict()["encoding"]["color"]["scale"]["domain"] == ["layer 0", "dense", "out_proj"]


def test_a_sweep_shows_the_norms_after_round_1_by_scale(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = [
        {"num_sites": n, "head_init": head, "seed": seed, "accuracies": [0.25, 0.5, 0.5], "others": by_layer(norm * seed)}
        for n in (1, 4, 16)
        for head, norm in (("shared", 1.0), ("independent", 1 / n))
        for seed in (1, 2)
    ]  # fmt: skip
    chart = gradient_scaling.draw(builders.sweep(tmp_path, *cells))
    found = {(row["num_sites"], row["head_init"]): row["mean"] for row in data_of(chart) if row["mean"]}
    expected = {(n, head): 1.5 / n**power for n in (1, 4, 16) for head, power in (("shared", 0), ("independent", 1))}
    assert found == pytest.approx(expected)
    assert chart is not None
    y = chart.to_dict()["layer"][1]["encoding"]["y"]
    assert y["scale"]["type"] == "log"
    assert {"gradient norm", "number of sites", "independent", "shared"} <= set(texts_of(chart).split(" | "))


@pytest.mark.parametrize("chart", [gradient_norms, gradient_scaling])
def test_without_norms_there_is_no_picture(tmp_path: Path, chart: Any) -> None:
    assert chart.draw(builders.sweep(tmp_path, {"num_sites": 1}, {"num_sites": 2})) is None
