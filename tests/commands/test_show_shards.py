import csv
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from scaling_fl.commands import show_shards
from scaling_fl.config.schema import Config
from scaling_fl.config.sections.commands import check_command
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.shards import make_shards
from scaling_fl.errors import UserError
from scaling_fl.federated import attackers
from scaling_fl.text import num_columns

NAMES = ("sea", "land", "moon")


def split(labels: list[int], sites: list[str] | None = None) -> Split:
    return Split([""] * len(labels), np.array(labels), sites=sites)


def describe(rows: Split, names: tuple[str, ...] = NAMES, width: int = 120, **keys: Any) -> list[str]:
    config = Config(**keys)
    return show_shards.describe(config, rows, names, make_shards(config, rows, []), width)


def picture(lines: list[str]) -> list[list[str]]:
    """Names and bars below the legend."""
    legend = next(number for number, line in enumerate(lines) if "none" in line)
    return [line.split("  ") for line in map(str.strip, lines[legend + 2 :])]


def test_counts_and_entropies_match_the_shards() -> None:
    # Sorted by label and cut: 0 0 0 0 | 0 0 1 1 | 1 1 2
    lines = describe(split([0, 1, 0, 0, 2, 0, 1, 0, 1, 0, 1]), iid_split=False, num_sites=3)
    assert lines[0] == "partition=by_label: 3 sites, 11 training rows"
    assert [line.split() for line in lines[2:6]] == [
        ["site", "examples", "entropy", *NAMES],
        ["0", "4", "0.000", "4", "0", "0"],
        ["1", "4", "1.000", "2", "2", "0"],
        ["2", "3", "0.918", "0", "2", "1"],  # -2/3 log2(2/3) - 1/3 log2(1/3)
    ]
    # (0 + 1 + 0.918) / 3 over the sites; 6/11, 4/11 and 1/11 of all rows
    assert lines[6] == (
        "examples: smallest 3, median 4, largest 4; label entropy in bits: mean over the sites 0.639, all rows 1.322"
    )
    # 4/4, 2/4, 0; 0, 2/4, 2/3; 0, 0, 1/3
    assert picture(lines) == [
        ["examples", "██████" * 2 + "▆▆▆▆▆▆"],
        ["sea", "██████▒▒▒▒▒▒······"],
        ["land", "······▒▒▒▒▒▒▓▓▓▓▓▓"],
        ["moon", "············▒▒▒▒▒▒"],
    ]


def test_sizes_and_keys_of_the_partition_are_shown() -> None:
    # rank ** -1.2 of the largest, in eighths and rounded up: 8, 3.5, 2.1, 1.5, 1.2, 0.9, 0.8, 0.7
    rows = split([0, 1] * 5000)
    lines = describe(rows, partition="sizes", size_law="power", size_skew=1.2, num_sites=8, validation_fraction=0.2)
    assert (
        lines[0]
        == "partition=sizes size_law=power size_skew=1.2: 8 sites, 8,000 training rows; 2,000 more are held back"
    )
    heights = picture(lines)[0][1][::6]
    assert sorted(heights, reverse=True) == sorted("█▄▃▂▂▁▁▁", reverse=True)


def test_sites_of_a_column_are_named_by_its_values() -> None:
    rows = split([0, 1, 2, 0], ["Lund\n", "Oslo", "Lund\n", "a very long name of a town"])
    lines = describe(rows, partition="column", partition_column="town", site_ids=(-1,))
    assert lines[0] == "partition=column partition_column=town: 3 sites, 4 training rows"
    assert [line[:18].strip() for line in lines[3:6]] == ["Lund", "Oslo", "a very long name …"]
    assert [line.split()[-5:] for line in lines[3:5]] == [
        ["2", "1.000", "1", "0", "1"],
        ["1", "0.000", "0", "1", "0"],
    ]


def test_many_sites_and_labels_are_abridged() -> None:
    rows = split([number % 40 for number in range(4000)])
    lines = describe(rows, tuple(f"label {number}" for number in range(40)), num_sites=1000)
    table, drawn = lines[2:14], picture(lines)
    assert [line.split()[0] for line in table] == ["site", *"012345", "…", "997", "998", "999", "…"]
    assert table[7].split(maxsplit=1)[1] == "991 more sites; all=True lists them"
    assert table[-1].strip() == "… and 32 more labels"
    assert any(line.strip() == "64 of 1,000 sites from left to right" for line in lines)
    assert all(len(characters) == 64 for _, characters in drawn[:-1])
    assert len(drawn) == 1 + 30 + 1
    assert all(len(line) < 160 for line in lines)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("num_sites", [1, 7, 300])
def test_rows_fit_the_terminal_and_tell_labels_apart(width: int, num_sites: int) -> None:
    names = tuple(
        f"Business Categories: {kind}" for kind in ("Food and Drink", "Forestry", "Fishing", "Transport", "Textiles")
    )
    lines = describe(split([number % 5 for number in range(9000)]), names, width, num_sites=num_sites)
    legend = next(number for number, line in enumerate(lines) if "none" in line)
    rows = [*lines[2 : 4 + min(num_sites, 9)], *lines[legend + 1 :]]  # the other lines are prose
    assert all(len(line) <= width for line in rows), max(rows, key=len)
    assert "… Forestry" in lines[2]
    assert [line.strip().split("  ")[0] for line in lines[legend + 3 :]] == [
        "… Food and Drink", "… Forestry", "… Fishing", "… Transport", "… Textiles",
    ]  # fmt: skip


def test_all_sites_and_labels_are_listed_on_request() -> None:
    rows = split([number % 40 for number in range(4000)])
    names = tuple(f"label {number}" for number in range(40))
    lines = describe(rows, names, 10**6, num_sites=150, all=True)  # in a pipe
    assert [line.split()[0] for line in lines[3:153]] == list(map(str, range(150)))
    assert all(len(line.split()) == 3 + 40 for line in lines[3:153])
    counts = [list(map(int, line.split()[3:])) for line in lines[3:153]]
    assert np.sum(counts, axis=0).tolist() == [100] * 40
    # 64 + 64 + 22 sites, each part with a bar and 40 labels
    assert [line.strip() for line in lines if line.strip().startswith("sites ")] == [
        "sites 0 to 63", "sites 64 to 127", "sites 128 to 149",
    ]  # fmt: skip
    bars = [line.split()[1] for line in lines if line.split()[:1] == ["examples"] and set(line.split()[1]) <= set("▇█")]
    assert list(map(len, bars)) == [64, 64, 22]
    assert not any("more" in line.split() and "…" in line for line in lines)


@pytest.mark.parametrize("width", [60, 80])
def test_all_labels_are_listed_in_blocks_of_columns_that_fit_the_terminal(width: int) -> None:
    towns = [f"{town}, a very long name of a town" for town in ("Oslo", "Lund", "富士宮市富士宮市富士宮市")]
    names = ("Food and Drink, wines included", "新闻 " + "体" * 20, "Fishing", "Transport", "Textiles and clothing")
    rows = split([number % 5 for number in range(60)], [towns[number % 3] for number in range(60)])
    lines = describe(rows, names, width, partition="column", partition_column="town", site_ids=(-1,), all=True)
    table = lines[2 : next(n for n, line in enumerate(lines) if line.startswith("examples: "))]
    assert all(num_columns(line) <= width for line in table), max(table, key=num_columns)
    blocks = [block.split("\n") for block in "\n".join(table).split("\n\n")]
    assert len(blocks) > 1
    assert [len(block) for block in blocks] == [4] * len(blocks), "heads, and a row for each site"
    heads = " ".join(block[0] for block in blocks)
    assert [heads.count(name) for name in ("Food and", "新闻", "Fishing", "Transport", "Textiles")] == [1] * 5
    # 12 rows of each label, 4 of them at each site
    assert [[line.split()[-1] for line in block[1:]] for block in blocks] == [["4"] * 3] * len(blocks)


def test_the_legend_says_what_columns_bars_and_shades_mean() -> None:
    lines = describe(split([0, 1, 0, 0, 2, 0, 1, 0, 1, 0, 1]), iid_split=False, num_sites=3)
    legend = lines.index(next(line for line in lines if "none" in line))
    assert [line.strip() for line in lines[legend - 2 : legend + 1]] == [
        "all 3 sites from left to right, each 6 characters wide",
        "examples  the higher, the more examples: █ is as large as the largest site (4)",
        "a label  its share of the site's examples: · none  ░ up to 25 %  ▒ up to 50 %  ▓ up to 75 %  █ more",
    ]


def test_a_csv_file_holds_the_counts_of_all_sites(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("body,topic,town\na,x,Oslo\nb,y,Lund\nc,x,Lund\nd,x,Lund\ne,y,Oslo\n")
    keys = {
        "task_name": "csv", "train_path": str(tmp_path / "all.csv"), "test_path": str(tmp_path / "all.csv"),
        "text_column": "body", "label_column": "topic", "partition": "column", "partition_column": "town",
        "site_ids": [-1], "csv_path": str(tmp_path / "shards.csv"),
    }  # fmt: skip
    show_shards.show(MagicMock(), Config.from_mapping(keys), 80)
    with open(tmp_path / "shards.csv", newline="") as file:
        found = list(csv.reader(file))
    # -1/3 log2(1/3) - 2/3 log2(2/3)
    assert found == [
        ["site", "name", "examples", "entropy", "x", "y"],
        ["0", "Lund", "3", "0.918296", "2", "1"],
        ["1", "Oslo", "2", "1.000000", "1", "1"],
    ]
    with pytest.raises(UserError, match="it exists; choose another name"):
        show_shards.show(MagicMock(), Config.from_mapping(keys), 80)


@pytest.mark.parametrize(
    ("keys", "command", "message"),
    [
        ({"all": True}, "train", "all=True: only show_shards uses it, not train; leave it out"),
        ({"csv_path": "x.csv"}, "show_task", "csv_path=x.csv: only evaluate and show_shards use it, not show_task"),
        ({"checkpoint": "x"}, "show_shards", "checkpoint=x: only evaluate and export use it"),
    ],
)
def test_keys_of_other_commands_are_refused(keys: dict[str, Any], command: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_command(Config(**keys), command)
    check_command(Config(**keys), "print_config")
    check_command(Config(), command)


def test_own_test_rows_and_attackers_are_shown(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "num_sites": 5, "iid_split": False, "site_test": "held_back", "site_test_fraction": 0.25,
        "attack": "sign_flip", "attackers": 2, "csv_path": str(tmp_path / "shards.csv"), "seed": 3,
    }  # fmt: skip
    train = tmp_path / "train.csv"
    train.write_text("text,label\n" + "".join(f"row {n},{n % 3}\n" for n in range(40)))
    keys |= {
        "task_name": "csv",
        "train_path": str(train),
        "test_fraction": 0.1,
        "text_column": "text",
        "label_column": "label",
    }
    send = MagicMock()
    show_shards.show(send, Config(**keys), 120)
    lines = [call.args[0]["text"] for call in send.call_args_list if call.args[0]["event"] == "said"]
    head = next(number for number, line in enumerate(lines) if line.split()[:1] == ["site"])
    assert lines[head].split() == ["site", "examples", "entropy", "own", "test", "attacks", "0", "1", "2"]
    expected = attackers.drawn(Config(**keys), 5)
    assert len(expected) == 2
    with (tmp_path / "shards.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = [7, 7, 7, 7, 8]  # 36 rows, of which 5 sites hold back a quarter each: 2 of 7 or 8
    for site, row in enumerate(rows):
        assert row["attacks"] == ("sign_flip" if site in expected else "")
        assert ("sign_flip" in lines[head + 1 + site]) == (site in expected)
        assert int(row["own test"]) == 2 == int(lines[head + 1 + site].split()[3])
        assert int(row["examples"]) == sum(int(row[label]) for label in "012")
    assert sorted(int(row["examples"]) + 2 for row in rows) == sizes


def test_numbers_in_a_file_have_no_separators() -> None:
    """Those of the table do: 1,234 would be text for a spreadsheet, or two columns."""
    labels = np.arange(3000) % 2
    split = Split(["text"] * 3000, labels)
    config = Config(site_ids=(-1, -1), site_test="held_back")
    sharding = make_shards(config, split, [])
    tests = [np.arange(1234), np.arange(1234, 1240)]
    header, rows = show_shards._columns(config, Task(split, split, ("a", "b")), sharding, tests)
    found = [dict(zip(header, row, strict=True)) for row in rows]
    assert [str(row["own test"]) for row in found] == ["1234", "6"]
    assert [(row["site"], row["examples"]) for row in found] == [(0, 1500), (1, 1500)]
    assert [int(str(row["a"])) + int(str(row["b"])) for row in found] == [1500, 1500]
