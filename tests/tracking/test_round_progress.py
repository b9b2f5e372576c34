import dataclasses
from typing import Any

import pytest

from scaling_fl.federated.run_plan import Plan
from scaling_fl.tracking.round_progress import DONE, TRAINING, WAITING, RoundProgress
from tests.tracking import builders
from tests.tracking.builders import progress


def of(config: dict[str, Any] | None = None, **fields: Any) -> Plan:
    made = builders.plan(round_=0)
    return dataclasses.replace(made, config=dataclasses.replace(made.config, **(config or {})), **fields)


FIVE = of({"batch_size": 2, "num_local_epochs": 3}, shard_sizes=(2, 4, 6, 8, 9))  # 3, 6, 9, 12 and 15 steps


def test_the_steps_of_a_round_count_the_sampled_sites() -> None:
    """Sites of 5 and 4 examples in batches of 3 for 2 epochs: 2 × (2 + 2) steps, or 2 × 3 for one site of 9 examples."""
    plan = of({"batch_size": 3, "num_local_epochs": 2})
    assert [RoundProgress(plan, round_).local_steps for round_ in (0, 1)] == [0, 8]
    steps = RoundProgress(of({"num_local_steps": 7}), 1)
    assert (steps.local_steps, {site.steps for site in steps.sites.values()}) == (14, {7})
    central = of({"batch_size": 3, "num_local_epochs": 2, "baseline": "centralised"})
    assert RoundProgress(central, 1).local_steps == 6
    cohort = dataclasses.replace(FIVE, config=dataclasses.replace(FIVE.config, sites_per_round=2))
    sites = RoundProgress(cohort, 1).sites
    assert len(sites) == 2
    assert sites != RoundProgress(cohort, 2).sites
    assert all(site.steps == {0: 3, 1: 6, 2: 9, 3: 12, 4: 15}[number] for number, site in sites.items())


@pytest.mark.parametrize(("baseline", "models"), [(None, 1), ("local_only", 2)])
def test_the_evaluation_steps_count_every_sites_own_model(baseline: str | None, models: int) -> None:
    """3 test and 7 held-back examples in batches of up to 2 are 2 + 4 batches; without a global model, for both sites."""
    plan = of({"val_batch_size": 2, "baseline": baseline, "eval_every": 3}, num_test=3, num_held_back=7)
    assert RoundProgress(plan, 3).evaluation_steps == models * (2 + 4)
    assert RoundProgress(plan, 0).evaluation_steps == 2 + 4, "the one initial model"
    assert RoundProgress(plan, 1).evaluation_steps == 0


def test_the_evaluation_steps_include_the_sites_own_test_rows() -> None:
    """3 test rows are 2 batches of up to 2. Own rows: 5 + 1 are 3 batches together, 3 + 1 at the sites one by one."""

    def steps(round_: int, **keys: Any) -> int:
        plan = of({"val_batch_size": 2, **keys}, num_test=3, site_test_sizes=(5, 1))
        return RoundProgress(plan, round_).evaluation_steps

    assert (steps(0), steps(1)) == (2 + 3, 2 + 3)
    assert (steps(0, ditto_lambda=0.5), steps(1, ditto_lambda=0.5)) == (2 + 3, 2 + 3 + 4)
    assert steps(1, fine_tune_steps=10) == 2 + 3 + 4 + 2 * 10
    without = of({"val_batch_size": 2, "fine_tune_steps": 10}, num_test=3, site_test_sizes=(5, 0))
    assert RoundProgress(without, 1).evaluation_steps == 2 + 3 + 3 + 10, "nothing is tuned where nothing is tested"
    assert (steps(0, personal="head"), steps(1, personal="head")) == (2, 2 * 2 + 4)


def test_only_this_nodes_sites_and_batches_count() -> None:
    """Worker 0 has batch 0 and 2 of three, worker 1 batch 1."""
    fields = {"nodes": (0, 1), "num_test": 5, "shard_sizes": (5, 4)}
    parts = [RoundProgress(of({"val_batch_size": 2}, node=node, **fields), 1) for node in (0, 1)]
    assert [list(part.sites) for part in parts] == [[0], [1]]
    assert [part.evaluation_steps for part in parts] == [2, 1]
    central = [RoundProgress(of({"baseline": "centralised"}, node=node, **fields), 1) for node in (0, 1)]
    assert [list(part.sites) for part in central] == [[0], []], "worker 0 trains all data"


def test_sites_wait_train_and_are_done() -> None:
    current = RoundProgress(FIVE, 1)
    current.update(progress(0, 1, 5, 4, 5))
    current.update(progress(1, 1, 2, 3, 2))
    current.update(progress(1, 1, 13, 2, 1, (3, 0.5, 0.75)))
    states = {number: (site.state, site.done, site.loss) for number, site in current.sites.items()}
    assert states == {
        0: (WAITING, 0, None), 1: (WAITING, 0, None), 2: (TRAINING, 1, None), 3: (DONE, 12, 0.5), 4: (TRAINING, 5, None),
    }  # fmt: skip
    assert [current.count(state) for state in (WAITING, TRAINING, DONE)] == [2, 2, 1]
    assert (current.done, current.local_steps, current.trained) == (18, 45, False)
    # In batches of 2: 1 of 9 steps, 12 of 12 and 5 of 15 of three epochs on 6, 8 and 9 examples.
    assert current.examples == pytest.approx(18 / 9 + 24 + 27 / 3)
    one = current.current_site(1)
    assert one is not None
    assert one.number == 2
    current.update(progress(0, 1, 18, None, 0, (4, 1.0, 0.5), (0, 1.0, 0.5)))
    current.update(progress(1, 1, 27, None, 0, (2, 1.0, 0.5), (1, 1.0, 0.5)))
    assert (current.trained, current.done, current.evaluated, current.current_site(0)) == (True, 45, 0, None)
    current.update(progress(1, 1, 28))
    assert (current.done, current.evaluated) == (46, 1)


def test_a_round_that_was_complete_at_the_start_is_only_evaluated() -> None:
    plan = dataclasses.replace(FIVE, round=3)
    assert (RoundProgress(plan, 3).sites, RoundProgress(plan, 3).trained) == ({}, True)
    assert len(RoundProgress(plan, 4).sites) == 5
