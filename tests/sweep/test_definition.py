"""Sweeps as files and on the command line, and the cells that they define."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling_fl.errors import UserError
from scaling_fl.sweep import definition

ROOT = Path(__file__).resolve().parents[2]
BASE = {"task_name": "demo", "model": "tiny", "site_ids": [0]}


def loaded(folder: Path, **sections: Any) -> definition.Definition:
    (folder / "study.yaml").write_text(yaml.safe_dump({"base": BASE} | sections, sort_keys=False))
    return definition.load(folder / "study.yaml")


def varied(found: definition.Definition) -> list[dict[str, Any]]:
    return [dict(cell.varied) for cell in found.cells()]


def test_a_grid_has_every_combination_and_zipped_lists_vary_together(tmp_path: Path) -> None:
    found = loaded(
        tmp_path,
        grid={"num_sites": [2, 4], "seed": [1, 2]},
        zip={"partition": ["iid", "dirichlet"], "alpha": [None, 0.5]},
    )
    assert varied(found) == [
        {"partition": partition, "alpha": alpha, "num_sites": sites, "seed": seed}
        for partition, alpha in (("iid", None), ("dirichlet", 0.5))
        for sites in (2, 4)
        for seed in (1, 2)
    ]
    assert [cell.name for cell in found.cells()][4] == "study.partition-dirichlet.num_sites-2.seed-1"
    last = found.cells()[-1].config
    assert (last.partition, last.alpha, last.num_sites, last.seed, last.model) == ("dirichlet", 0.5, 4, 2, "tiny")
    assert last.checkpoints_dir == "checkpoints/study.partition-dirichlet.num_sites-4.seed-2"


def test_several_groups_are_zipped_and_excluded_cells_are_left_out(tmp_path: Path) -> None:
    groups = [{"optimiser": ["sgd", "adamw"], "learning_rate": [0.1, 0.001]}, {"seed": [1, 2], "data_seed": [5, 6]}]
    found = loaded(tmp_path, zip=groups, exclude=[{"optimiser": "sgd", "seed": [2, 3]}, {"model": "bert"}])
    assert [(row["optimiser"], row["learning_rate"], row["data_seed"]) for row in varied(found)] == [
        ("sgd", 0.1, 5), ("adamw", 0.001, 5), ("adamw", 0.001, 6),
    ]  # fmt: skip


def test_a_rule_may_name_keys_that_are_the_same_in_all_cells(tmp_path: Path) -> None:
    rules = [{"model": "tiny", "seed": 2}, {"model": "bert", "seed": 1}]
    assert varied(loaded(tmp_path, grid={"seed": [1, 2, 3]}, exclude=rules)) == [{"seed": 1}, {"seed": 3}]


def test_random_draws_are_the_same_each_time_and_in_range(tmp_path: Path) -> None:
    keys = {
        "learning_rate": {"log_uniform": ["1e-5", "1e-1"]}, "batch_size": {"integer": [4, 6]},
        "optimiser": {"choice": ["sgd", "adamw"]}, "weight_decay": {"uniform": [0, 0.5]},
    }  # fmt: skip
    rows = varied(loaded(tmp_path, random={"count": 40, "seed": 3, "keys": keys}))
    assert rows == varied(loaded(tmp_path, random={"count": 40, "seed": 3, "keys": keys}))
    assert rows != varied(loaded(tmp_path, random={"count": 40, "seed": 4, "keys": keys}))
    first = varied(loaded(tmp_path, random={"count": 40, "seed": 1, "keys": keys}))
    assert varied(loaded(tmp_path, random={"count": 40, "keys": keys})) == first, "the seed is 1 if there is none"
    assert {row["batch_size"] for row in rows} == {4, 5, 6}
    assert {row["optimiser"] for row in rows} == {"sgd", "adamw"}
    rates = sorted(row["learning_rate"] for row in rows)
    assert rates[0] >= 1e-5
    assert rates[-1] <= 0.1
    assert 3 <= sum(rate < 1e-4 for rate in rates) <= 20, "a quarter lies in each factor of ten"
    assert all(0 <= row["weight_decay"] <= 0.5 for row in rows)


def test_the_command_line_replaces_a_random_key(tmp_path: Path) -> None:
    keys = {"batch_size": {"choice": [4, 8]}, "learning_rate": {"uniform": [0.1, 0.2]}}
    found = definition.updated(loaded(tmp_path, random={"count": 3, "seed": 3, "keys": keys}), ["batch_size=2"])
    assert [cell.config.batch_size for cell in found.cells()] == [2] * 3
    assert [row.keys() for row in varied(found)] == [{"learning_rate"}] * 3


def test_the_command_line_replaces_and_varies_keys(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, grid={"num_sites": [2, 4], "seed": [1, 2]}, zip={"batch_size": [8, 16], "max_seq_len": [16, 32]}
    )
    words = ["num_sites=[1,3]", "seed=5", "model=[tiny,lab/bert]", "batch_size=4", "max_seq_len=8", "site_ids=[0]"]
    found = definition.updated(found, words, "other")
    assert [(row["num_sites"], row["model"]) for row in varied(found)] == [
        (1, "tiny"), (1, "lab/bert"), (3, "tiny"), (3, "lab/bert"),
    ]  # fmt: skip
    assert {(cell.config.seed, cell.config.batch_size, cell.config.max_seq_len) for cell in found.cells()} == {
        (5, 4, 8)
    }
    assert found.cells()[1].name == "other.num_sites-1.model-bert"


def test_a_sweep_of_the_command_line_alone_may_vary_lists(tmp_path: Path) -> None:
    found = definition.updated(definition.Definition(), ["demo", "site_ids=[[0],[0,0]]"])
    assert [cell.config.site_ids for cell in found.cells()] == [(0,), (0, 0)]
    assert {cell.config.task_name for cell in found.cells()} == {"demo"}
    assert [cell.name for cell in found.cells()] == ["sweep.site_ids-0", "sweep.site_ids-0_0"]


def test_long_and_equal_names_are_told_apart(tmp_path: Path) -> None:
    paths = ["/a/train.csv", "/b/train.csv"]
    found = loaded(tmp_path, grid={"train_path": paths, "text_column": ["x" * 200]})
    names = [cell.name for cell in found.cells()]
    assert len(set(names)) == 2
    assert all(len(name) <= 120 for name in names)
    assert names == [cell.name for cell in found.cells()]
    (alone,) = loaded(tmp_path, grid={"text_column": ["x" * 200]}).cells()
    assert len(alone.name) == 120
    (fits,) = loaded(tmp_path, grid={"text_column": ["x" * 100]}).cells()
    assert fits.name == f"study.text_column-{'x' * 100}"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"grids": {}}, "grids: expected one of name, base, grid"),
        ({"grid": [1]}, "grid: expected keys with lists of values, found list"),
        ({"grid": {"seed": 1}}, "grid.seed: expected a list of values; a single value belongs in base"),
        ({"grid": {"sede": [1]}}, "cell study.sede-1: sede=1: unknown key; did you mean seed?"),
        ({"grid": {"num_rounds": [0]}}, "num_rounds=0: expected"),
        ({"zip": {"seed": [1, 2], "data_seed": [1]}}, "zip: expected lists of one length, found {'seed': 2, 'data_seed': 1}"),
        ({"zip": [{}]}, "zip: expected keys with lists"),
        ({"grid": {"seed": [1]}, "zip": {"seed": [2]}}, "seed is varied twice"),
        ({"grid": {"seed": [1, 1]}}, "two cells have the same keys"),
        ({"grid": {"seed": [1]}, "exclude": [{"seed": 1}]}, "`exclude` leaves no cell"),
        ({"exclude": ["seed"]}, "exclude: expected keys and values"),
        ({"name": "a b"}, "name=a b: expected up to 60 letters"),
        ({"grid": {"job_name": ["a"]}}, "job_name: a sweep sets or doesn't use it"),
        ({"grid": {"seed": [1, 2], "checkpoints_dir": ["out"]}}, "checkpoints_dir=out: all cells would write there; add {job_name}"),
        ({"random": {"count": 2}}, "random: expected count, seed and keys, found count"),
        ({"random": {"count": 2, "keys": {"seed": {"normal": [1, 2]}}}}, "random.seed: expected one of choice"),
        ({"random": {"count": 2, "keys": {"alpha": {"log_uniform": [0, 1]}}}}, "random.alpha: expected one of choice"),
        ({"random": {"count": 2, "keys": {"batch_size": {"integer": [6, 4]}}}}, "random.batch_size: expected one of choice"),
        ({"grid": {"seed": list(range(200)), "data_seed": list(range(200))}}, "more than 10,000 cells"),
    ],
)  # fmt: skip
def test_a_wrong_definition_is_one_error(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, **sections).cells()
    assert said in str(error.value)


@pytest.mark.parametrize("content", ["- a\n", "grid: [\n", ""])
def test_a_file_that_is_no_sweep_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "study.yaml").write_text(content)
    with pytest.raises(UserError, match=r"study\.yaml: expected"):
        definition.load(tmp_path / "study.yaml")
    with pytest.raises(UserError, match=r"nothing\.yaml: expected a sweep as YAML"):
        definition.load(tmp_path / "nothing.yaml")


def test_the_sweeps_of_the_repository_are_valid() -> None:
    for path in (Path(__file__).parent.parent.parent / "sweeps").glob("*.yaml"):
        assert definition.load(path).cells(), path


def test_cases_are_named_sets_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "methods.yaml"
    path.write_text(
        "base: {task_name: demo, num_rounds: 3}\n"
        "cases:\n  FedAvg: {}\n  strong prox: {proximal_mu: 0.5, num_rounds: 4}\n"
        "grid: {seed: [1, 2]}\nexclude:\n  - {proximal_mu: 0.5, seed: 2}\n"
    )
    cells = definition.load(path).cells()
    assert [(cell.name, cell.config.case, cell.config.proximal_mu, cell.config.num_rounds) for cell in cells] == [
        ("methods.case-FedAvg.seed-1", "FedAvg", 0.0, 3),
        ("methods.case-FedAvg.seed-2", "FedAvg", 0.0, 3),
        ("methods.case-strong_prox.seed-1", "strong prox", 0.5, 4),
    ]
    assert [dict(cell.varied) for cell in cells][-1] == {"case": "strong prox", "seed": 1}
    chosen = definition.updated(definition.load(path), ["case=FedAvg"]).cells()
    assert [cell.name for cell in chosen] == [cell.name for cell in cells[:2]]
    with pytest.raises(UserError, match="case=FedYogi: no such case; the cases are FedAvg, strong prox"):
        definition.updated(definition.load(path), ["case=[FedAvg,FedYogi]"])
    with pytest.raises(UserError, match="proximal_mu=1: case strong prox sets proximal_mu itself; leave it out"):
        definition.updated(definition.load(path), ["proximal_mu=1"])
    for wrong, message in (
        ("cases: {a: 3}", "cases.a: expected keys and values, or {}, found 3"),
        (
            "cases: {a: {seed: 1}}\ngrid: {seed: [1, 2]}",
            "seed is varied twice; leave it in one of grid, zip, cases and random",
        ),
        ("cases: {a: {}}\ngrid: {case: [b]}", "case is varied twice"),
    ):
        path.write_text(wrong)
        with pytest.raises(UserError, match=message):
            definition.load(path)


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_are_valid(path: Path) -> None:
    cells = definition.load(path).cells()
    assert len({cell.name for cell in cells}) == len(cells) > 0
