"""The lines above the table of rounds."""

import dataclasses
from typing import Any

import pytest

from scaling_fl.federated import attackers
from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking.plan_lines import plan_lines
from tests.tracking.builders import plan


def of(num_sites: int, **keys: Any) -> Plan:
    made = plan()
    config = dataclasses.replace(made.config, site_ids=(0,), num_sites=num_sites, **keys)
    return dataclasses.replace(
        made, config=config, devices=("cpu",), shard_sizes=(5,) * num_sites, shard_entropies=(1.0,) * num_sites
    )


def test_each_site_has_its_steps_and_its_device() -> None:
    made = plan(keys={"batch_size": 2, "local_epochs_range": (1, 3)})
    first, *lines = plan_lines(dataclasses.replace(made, devices=("cuda:1", "cuda:0")))
    assert first.startswith("2 sites on cuda:0, cuda:1, 1 thread each; aggregation through the memory of the GPU, NCCL")
    # 5 and 4 examples in batches of 2: 3 and 2 steps in an epoch.
    assert [line.split() for line in lines if line.split()[0].isdecimal()] == [
        ["0", "5", "1.000", "bits", "3", "to", "9", "cuda:1"], ["1", "4", "0.500", "bits", "2", "to", "6", "cuda:0"],
    ]  # fmt: skip


def test_the_model_and_the_task_are_described() -> None:
    made = dataclasses.replace(
        plan(keys={"trainable": "head", "model": "bert", "task_name": "imdb"}), num_parameters=2_340_000,
        num_trained=1234, new_parameters=tuple("abcde"), num_truncated=7,
    )  # fmt: skip
    lines = list(plan_lines(made))
    assert lines[1] == "model bert: Bert, 2.3 M parameters, 1,234 of them trained, new: a, b, c, d, …"
    assert lines[2].startswith(
        "task imdb: 9 training and 3 test examples, 2 classes; 7 training texts reach max_seq_len"
    )
    kept = list(plan_lines(dataclasses.replace(plan(keys={"model": "bert"}), new_parameters=())))
    assert kept[1] == "model bert: Bert, 0.0 M parameters, its classification head kept"


def test_many_sites_are_summed_up_below_the_table() -> None:
    made = dataclasses.replace(of(18), shard_sizes=(40, *range(10, 27)))
    assert "   … and 2 more; examples per site: 10 to 40, median 18" in list(plan_lines(made))


def test_long_conversations_are_counted() -> None:
    made = dataclasses.replace(of(2), label_names=(), unit="conversations", num_truncated=1234)
    (line,) = [line for line in plan_lines(made) if line.startswith("task ")]
    assert line.endswith("conversations of up to max_seq_len=128 tokens; 1,234 training conversations are as long")
    (line,) = [line for line in plan_lines(dataclasses.replace(made, unit="blocks")) if line.startswith("task ")]
    assert line.endswith("blocks of up to max_seq_len=128 tokens")


@pytest.mark.parametrize("num_sites", [8, 40])
def test_attackers_are_named_in_the_table_of_sites_or_below_it(num_sites: int) -> None:
    made = of(num_sites, attack="sign_flip", attackers=num_sites // 2)
    bad = attackers.drawn(made.config, num_sites)
    lines = list(plan_lines(made))
    rows = {int(line.split()[0]): line for line in lines if line.split()[0].isdecimal()}
    assert {site for site, line in rows.items() if "attacks: sign_flip" in line} == bad & rows.keys()
    hidden = sorted(bad - rows.keys())
    below = " ".join(lines[-2:])
    assert all(str(site) in below for site in hidden)
    assert bool(hidden) == (num_sites == 40)
    assert not any("attack" in line for line in plan_lines(of(num_sites)))


def test_a_poisson_cohort_has_about_so_many_sites() -> None:
    poisson = " ".join(plan_lines(of(8, sampling="poisson", participation=0.5)))
    assert "8 sites, about 4 a round" in poisson
    assert "8 sites, 4 a round" in " ".join(plan_lines(of(8, participation=0.5)))


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({}, "site 1 (cpu)"), ({"num_sites": 3}, "worker 1 (cpu)"), ({"participation": 0.5}, "worker 1 (cpu)"),
        ({"baseline": "centralised"}, "worker 1 (cpu)"), ({"baseline": "local_only"}, "site 1 (cpu)"),
    ],
)  # fmt: skip
def test_a_worker_is_called_after_its_site_if_it_trains_no_other(keys: dict[str, Any], name: str) -> None:
    made = plan()
    sizes = (5,) * keys.get("num_sites", 2)
    config = dataclasses.replace(made.config, **keys)
    made = dataclasses.replace(made, config=config, shard_sizes=sizes, shard_entropies=(1.0,) * len(sizes))
    assert made.worker_name(1) == name
    heads = next(line for line in plan_lines(made) if line.startswith("site  "))
    assert heads.endswith("device") == name.startswith("site")
