import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl.config.schema import Config
from scaling_fl.data import partitioners
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.shards import make_shards
from scaling_fl.data.task_loader import load_task
from scaling_fl.errors import UserError
from tests import builders

TEXTS, LABELS = builders.texts_and_labels(200)
SPLIT = Split(TEXTS, LABELS, sites=[("north", "east", "10", "9")[i % 7 // 2] for i in range(200)])

PARTITIONS: list[dict[str, Any]] = [
    {"partition": "iid"},
    {"iid_split": False},
    {"partition": "dirichlet", "alpha": 0.01},
    {"partition": "dirichlet", "alpha": 0.1, "balanced": True},
    {"partition": "labels_per_site", "labels_per_site": 2},
    {"partition": "sizes"},
    {"partition": "sizes", "size_law": "power", "size_skew": 3},
]


@pytest.mark.parametrize("keys", PARTITIONS)
@pytest.mark.parametrize("more", [{"num_sites": 12}, {"site_ids": [-1] * 5, "min_examples_per_site": 20}])
def test_each_row_is_held_back_or_in_one_shard_of_at_least_the_minimum_size(
    keys: dict[str, Any], more: dict[str, Any]
) -> None:
    config = Config.from_mapping({"validation_fraction": 0.2, **keys, **more})
    notes: list[str] = []
    held_back, trained, shards = make_shards(config, SPLIT, notes)
    assert len(shards) == (config.num_sites or 5)
    assert len(held_back) == 40
    assert sorted(np.concatenate([held_back, *shards]).tolist()) == list(range(200))
    assert sorted(np.concatenate(shards).tolist()) == trained.tolist()
    assert min(map(len, shards)) >= config.min_examples_per_site
    again = make_shards(config, SPLIT, []).shards
    assert all(map(np.array_equal, shards, again))
    if config.balanced:
        assert max(map(len, shards)) - min(map(len, shards)) <= 1
    if config.alpha is not None and not config.balanced:
        drawn = partitioners.dirichlet(LABELS[trained], len(shards), config.data_seed, config.alpha)
        held = np.bincount(drawn, minlength=len(shards))
        missing = np.maximum(config.min_examples_per_site - held, 0).sum()
        assert notes == [
            f"{missing} of 160 training rows were moved from the largest sites to sites that had drawn fewer than "
            f"min_examples_per_site={config.min_examples_per_site}"
        ]


def test_all_partitions_yield_different_shards() -> None:
    owners = set()
    for keys in PARTITIONS:
        shards = make_shards(Config.from_mapping({"num_sites": 7, **keys}), SPLIT, []).shards
        owners.add(tuple(shards[0].tolist()))
    assert len(owners) == len(PARTITIONS)
    skews = [
        len(max(make_shards(Config(num_sites=7, partition="sizes", size_skew=skew), SPLIT, []).shards, key=len))
        for skew in (0.1, 1.0, 10.0)
    ]
    assert skews == sorted(set(skews))


@pytest.mark.parametrize(("minimum", "fits"), [(1, True), (3, True), (4, False)])
def test_a_value_of_the_column_needs_the_least_number_of_rows_and_no_more(minimum: int, fits: bool) -> None:
    split = Split([f"text {row}" for row in range(8)], np.arange(8) % 2, sites=["b"] * 3 + ["a"] * 5)
    keys = {"partition": "column", "partition_column": "town", "min_examples_per_site": minimum, "site_ids": [-1]}
    config = Config.from_mapping(keys)
    if fits:
        assert [shard.tolist() for shard in make_shards(config, split, []).shards] == [[3, 4, 5, 6, 7], [0, 1, 2]]
        return
    with pytest.raises(UserError, match=r"of which 'b' has 3 to train on, fewer than min_examples_per_site=4"):
        make_shards(config, split, [])


def test_iid_split_is_short_for_iid_and_by_label() -> None:
    for short, partition in ((True, "iid"), (False, "by_label")):
        first = make_shards(Config(iid_split=short), SPLIT, []).shards
        assert all(map(np.array_equal, first, make_shards(Config(partition=partition), SPLIT, []).shards))
    default = make_shards(Config(), SPLIT, []).shards
    assert all(map(np.array_equal, default, make_shards(Config(partition="iid"), SPLIT, []).shards))


def test_partition_by_column_has_one_site_per_value_in_order_without_the_rows_held_back() -> None:
    config = Config(partition="column", partition_column="town", validation_fraction=0.2)
    held_back, _, shards = make_shards(config, SPLIT, [])
    assert SPLIT.sites is not None
    for shard, town in zip(shards, ("10", "9", "east", "north"), strict=True):  # not all are numbers
        expected = [row for row in range(200) if SPLIT.sites[row] == town and row not in set(held_back.tolist())]
        assert shard.tolist() == expected
    numbers = dataclasses.replace(SPLIT, sites=["10", "9"] * 100)
    assert [len(shard) for shard in make_shards(config, numbers, []).shards] == [
        sum(row % 2 == label for row in range(200) if row not in set(held_back.tolist())) for label in (1, 0)
    ], "9 before 10"


def task(folder: Path, train: str, test: str, **keys: Any) -> Task:
    (folder / "train.csv").write_text(train)
    (folder / "test.csv").write_text(test)
    paths = {"train_path": str(folder / "train.csv"), "test_path": str(folder / "test.csv")}
    return load_task(Config(**{"partition": "column", **paths, **keys}))


@pytest.mark.parametrize(
    ("name", "train", "test", "column", "sites"),
    [
        ("agnews", "1,a,b\n3,c,d\n1,e,f\n", "1,g,h\n", "Class Index", ["1", "3", "1"]),
        ("yelp", "5,a\n1,b\n5,c\n", "1,d\n", "stars", ["5", "1", "5"]),
        ("spooky_author", "id,text,author,book\n1,a,EAP,x\n2,b,MWS, y\n", "id,text,author\n3,c,EAP\n", "book", ["x", "y"]),
        ("csv", "body,kind,town\na,x,2.0\nb,y,1\n", "body,kind\nc,x\n", "town", ["2", "1"]),
        ("csv", "body,kind\na,x\nb,y\n", "body,kind\nc,x\n", "kind", ["x", "y"]),
    ],
)  # fmt: skip
def test_the_partition_column_is_read_from_the_training_file_only(
    tmp_path: Path, name: str, train: str, test: str, column: str, sites: list[str]
) -> None:
    own = {"text_column": "body", "label_column": "kind"} if name == "csv" else {}
    loaded = task(tmp_path, train, test, task_name=name, partition_column=column, **own)
    assert loaded.train.sites == sites
    assert loaded.train.take(np.array([1])).sites == sites[1:2]


def test_the_data_digest_depends_on_the_sites_of_the_rows(tmp_path: Path) -> None:
    keys = {"task_name": "csv", "text_column": "body", "label_column": "kind", "partition_column": "town"}
    rows, test = "body,kind,town\na,x,{}\nb,y,2\n", "body,kind\nc,x\n"
    digests = [task(tmp_path, rows.format(town), test, **keys).digest() for town in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    plain = task(tmp_path, rows.format(1), test, **keys | {"partition": "iid", "partition_column": None}).digest()
    assert plain not in digests


def test_the_default_skew_of_sizes_is_1_and_the_default_law_lognormal() -> None:
    shards = make_shards(Config(num_sites=7, partition="sizes"), SPLIT, []).shards
    spelt_out = Config(num_sites=7, partition="sizes", size_law="lognormal", size_skew=1.0)
    assert all(map(np.array_equal, shards, make_shards(spelt_out, SPLIT, []).shards))


@pytest.mark.parametrize("keys", [keys for keys in PARTITIONS if keys != {"iid_split": False}])
def test_shards_depend_on_data_seed_alone(keys: dict[str, Any]) -> None:
    """`seed` is of training: another one must not change which rows a site holds."""
    config = Config.from_mapping({"num_sites": 7, "min_examples_per_site": 12, "validation_fraction": 0.2, **keys})

    def rows(config: Config) -> list[list[int]]:
        return [shard.tolist() for shard in make_shards(config, SPLIT, []).shards]

    assert rows(dataclasses.replace(config, seed=config.seed + 1)) == rows(config)
    assert rows(dataclasses.replace(config, data_seed=config.data_seed + 1)) != rows(config)


@pytest.mark.parametrize("minimum", [1, 25])
def test_rows_that_just_suffice_are_accepted(minimum: int) -> None:
    num_sites = 200 // minimum
    enough = Config(num_sites=num_sites, min_examples_per_site=minimum)
    assert [len(shard) for shard in make_shards(enough, SPLIT, []).shards] == [minimum] * num_sites
    with pytest.raises(UserError, match=f"200 training examples are too few for {num_sites + 1} sites"):
        make_shards(dataclasses.replace(enough, num_sites=num_sites + 1), SPLIT, [])
