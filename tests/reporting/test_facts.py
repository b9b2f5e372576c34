"""What a page says of a job: its summary, headline figures, tables, environment and command."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.reporting import facts, frames, records
from scaling_fl.reporting.facts import Facts
from scaling_fl.tracking.record import Record
from tests.reporting import builders


def recorded(path: Path) -> Record:
    (record,) = records.find(path).records
    return record


def of(record: Record) -> Facts:
    return facts.of_job(record, frames.of_records([record]))


@pytest.mark.parametrize(
    ("keys", "method"),
    [
        ({}, "iid partition, 1 local epoch a round"),
        ({"num_local_epochs": 2}, "iid partition, 2 local epochs a round"),
        ({"num_local_steps": 5}, "iid partition, 5 local steps a round"),
        ({"num_local_steps": 1}, "iid partition, 1 local step a round"),
        ({"local_epochs_range": (1, 4)}, "iid partition, 1 to 4 local epochs a round"),
        ({"baseline": "local_only", "partition": "by_label"}, "by_label partition, local_only"),
    ],
)
def test_the_summary_says_what_was_trained_how_long(tmp_path: Path, keys: dict[str, Any], method: str) -> None:
    more = {"num_rounds": 7, "num_sites": 3, "model": "bert", "task_name": "imdb", "ending": "interrupted"}
    path = builders.cell(tmp_path, "job", [0.5, 0.25, 0.5], **more, **keys)
    found = of(recorded(path))
    assert found.summary == f"bert on imdb, 3 sites, {method}; round 2 of 7"
    assert ("rounds", "2", "of 7") in found.figures


def test_figures_have_what_they_are_compared_with_beside_them(tmp_path: Path) -> None:
    record = recorded(builders.job(tmp_path, loss=0.5, sites_per_round=2))
    record.confusion["held_back"] = [[9, 8], [0, 0]]  # not the rows that the accuracy is of
    figures = {name: (value, note) for name, value, note in of(record).figures}
    assert figures["test accuracy"] == ("0.7500", "best: 0.8750, round 1; most frequent label: 0.692")
    assert figures["test loss"] == ("0.5000", "best: 0.5000, round 1; chance: 0.693")  # ln 2
    assert figures["sites"] == ("3", "2 in each round; 4 to 9 examples each")
    assert figures["parameters"] == ("1,000", "4 kB")
    shards = [{"site": site, "examples": 6} for site in range(2)]
    even = of(recorded(builders.cell(tmp_path, "even", [0.5], shards=shards)))
    assert ("sites", "2", "6 examples each") in even.figures


def test_the_tables_hold_the_last_values_of_each_site_and_all_rounds(tmp_path: Path) -> None:
    found = of(recorded(builders.job(tmp_path, loss=0.5)))
    assert found.shards == (
        ["site", "examples", "label entropy (bits)", "sport", "art", "training loss"],
        [[0, "5", "0.0000", "5", "0", "0.2500"], [1, "9", "0.2500", "4", "5", "1.2500"], [2, "4", "0.5000", "1", "3", "2.2500"]],
    )  # fmt: skip
    assert found.rounds == (
        ["round", "training loss", "test accuracy", "test loss"],
        [[0, "–", "0.5000", "0.7000"], [1, "1.0000", "0.8750", "0.5000"], [2, "0.5000", "0.7500", "0.5000"]],
    )


def test_the_environment_names_packages_commits_and_data(tmp_path: Path) -> None:
    record = recorded(builders.job(tmp_path))
    record.entry["host"] |= {"os": ["Linux", "6.1"], "gpus": {"gpus": [{"model": "H100"}, {}]}}
    record.entry["experiment"] |= {
        "dependencies": ["left-pad==1.3", "numpy==2.1", "torch==2.9", "unknown"],
        "repositories": [{"commit": "c0ffee", "dirty": True}, {"commit": "f00d", "dirty": False}],
    }
    record.info["data_digest"] = "d1gest"
    found = [(name, value) for name, value in of(record).environment if name not in ("devices", "torch", "started")]
    assert found == [
        ("host", "h"), ("system", "Linux 6.1"), ("GPUs", "H100, ?"), ("packages", "torch 2.9, numpy 2.1"),
        ("commit", "c0ffee, with uncommitted changes"), ("commit", "f00d"), ("data (SHA-256)", "d1gest"),
    ]  # fmt: skip


def test_the_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    found = of(recorded(builders.job(tmp_path, author="me & 'you'", seed=7)))
    words = shlex.split(found.command)
    assert words[:3] == ["./run-local.sh", "scripts/train_federated.py", "with"]
    assert {"author=me & 'you'", "seed=7", "batch_size=4"} <= set(words)
    assert ("author", "me & 'you'", "None") in found.changed


@pytest.mark.parametrize(("seconds", "text"), [(59.94, "59.9 s"), (60, "0:01:00"), (3725.6, "1:02:06")])
def test_a_minute_and_more_are_shown_as_on_a_clock(seconds: float, text: str) -> None:
    assert facts.duration(seconds) == text
