import dataclasses
import json
from types import SimpleNamespace
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.runtime.nodes import agreement
from scaling_fl.runtime.nodes.cluster_env import Node
from tests.tracking import builders


class Told:
    """A link on which the other nodes' values have already arrived."""

    def __init__(self, rank: int, others: dict[int, Any]):
        self.node, self.others = Node(rank, len(others) + 1, "10.0.0.1"), others

    def all_gather(self, value: Any) -> list[Any]:
        everyone = self.others | {self.node.rank: value}
        return [json.loads(json.dumps(everyone[rank])) for rank in range(self.node.count)]

    def interface(self) -> str:
        return "eth7"


def agreed(rank: int, mine: Config, *others: Config) -> Config:
    rest = [other for other in range(len(others) + 1) if other != rank]
    return agreement.agree_on_config(
        mine, Told(rank, {other: c.to_mapping() for other, c in zip(rest, others, strict=True)})
    )  # type: ignore[arg-type]


def test_nodes_may_have_their_own_places_and_processes() -> None:
    first = Config(site_ids=(-1, -1), job_name="news", checkpoints_dir="out", train_path="/a/train.csv")
    second = Config(site_ids=(-1,), job_name="x", train_path="/b/train.csv", threads_per_site=3)
    on_first, on_second = agreed(0, first, second), agreed(1, second, first)
    assert (on_first.num_sites, on_second.num_sites) == (3, 3)
    assert (on_first.job_name, on_second.job_name) == ("news", "news")
    assert (on_first.checkpoints_dir, on_second.checkpoints_dir) == ("out", None), "node 0 keeps them"
    assert on_second.train_path == "/b/train.csv"
    hosted = [dataclasses.replace(config, num_sites=10) for config in (first, second)]
    assert agreed(1, hosted[1], hosted[0]).num_sites == 10
    hosted = [dataclasses.replace(config, num_sites=3) for config in (first, second)]
    assert agreed(1, hosted[1], hosted[0]).num_sites == 3, "as many sites as processes"
    column = [dataclasses.replace(c, partition="column", partition_column="author") for c in (first, second)]
    assert agreed(0, *column).num_sites is None, "the data say how many"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_another_version_on_one_node_is_named(rank: int) -> None:
    now = Config().to_mapping()
    of_node = [now, {key: value for key, value in now.items() if key != "test_fraction"}, now]
    others = {other: keys for other, keys in enumerate(of_node) if other != rank}
    mine = SimpleNamespace(to_mapping=lambda: of_node[rank])
    with pytest.raises(UserError, match="node 1 and node 0 have different sets of keys; run the same version"):
        agreement.agree_on_config(mine, Told(rank, others))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"learning_rate": 0.5},
            "node 1 and node 0 have different configurations: learning_rate=0.5 and 5e-05; use the same",
        ),
        ({"num_rounds": 3, "seed": 1}, "num_rounds=3 and 10, seed=1 and 20210201; use the same values on every node"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_all_other_keys_must_be_the_same(rank: int, change: dict[str, Any], message: str) -> None:
    configs = [Config(), Config(**change)]
    with pytest.raises(UserError) as error:
        agreed(rank, configs[rank], configs[1 - rank])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"keep_optimiser": True}, "keep_optimiser=True: sites keep state on their own node"),
        (
            {"scaffold": "II", "optimiser": "sgd", "weighting": "uniform"},
            "scaffold=II: sites keep state on their own node",
        ),
        ({"feddyn_alpha": 0.5, "weighting": "uniform"}, "feddyn_alpha=0.5: sites keep state on their own node"),
        ({"personal": "head"}, "personal=head: sites keep state on their own node"),
        ({"ditto_lambda": 0.5}, "ditto_lambda=0.5: sites keep state on their own node"),
        ({"upload": "int8"}, "upload=int8 error_feedback=True: sites keep state on their own node"),
        ({"aggregation": "median"}, "aggregation=median: it compares the deltas of all sites, which no node has"),
        ({"baseline": "local_only"}, "baseline=local_only: sites keep state on their own node"),
        ({"num_sites": 3}, "num_sites=3: fewer than the 4 processes on all nodes"),
    ],
)
def test_keys_that_need_a_single_node_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        agreed(0, Config(**keys), Config(**keys))
    assert message in str(error.value)


def test_a_single_node_keeps_its_configuration_and_plan() -> None:
    config, plan = Config(keep_optimiser=True), builders.plan()
    assert agreement.agree_on_config(config, Told(0, {})) is config  # type: ignore[arg-type]
    assert agreement.join_plans(plan, Told(0, {})) is plan  # type: ignore[arg-type]


def part(**changes: Any) -> dict[str, Any]:
    usual = {
        "digests": {"data": "d" * 64, "models": "m" * 64}, "devices": ["cpu"], "threads": 4, "round": 0, "finished": False,
        "reported": False, "metrics": {}, "port": 0, "environment": {"torch": "2", "precision": "fp32"},
    }  # fmt: skip
    return usual | changes


def test_the_plan_of_all_nodes_is_that_of_node_0_with_everyones_processes() -> None:
    first = part(devices=["cpu", "cpu"], threads=2, round=5, reported=True, metrics={"train.loss": 1.0}, port=4711)
    mine = dataclasses.replace(
        builders.plan(round_=0), digests=part()["digests"], devices=("cpu",), environment=part()["environment"]
    )
    plan = agreement.join_plans(mine, Told(1, {0: first, 2: part(devices=["cpu"] * 3)}))  # type: ignore[arg-type]
    assert plan.nodes == (0, 0, 1, 2, 2, 2)
    assert plan.devices == ("cpu",) * 6
    assert (plan.node, plan.ranks_here) == (1, [2])
    assert (plan.round, plan.reported, plan.metrics, plan.threads) == (5, True, {"train.loss": 1.0}, 2)
    assert (plan.rendezvous, plan.interface) == ("tcp://10.0.0.1:4711", "eth7")


def test_different_data_or_models_are_refused_on_every_node() -> None:
    mine = dataclasses.replace(builders.plan(round_=0), digests=part()["digests"], environment=part()["environment"])
    other = part(digests={"data": "d" * 64, "models": "x" * 64})
    for others in ({0: part(), 2: other}, {0: other, 2: part()}):
        with pytest.raises(UserError, match=r"have different models \(digest "):
            agreement.join_plans(mine, Told(1, others))  # type: ignore[arg-type]
    finished = part(finished=True, digests={})
    assert agreement.join_plans(mine, Told(1, {0: finished})).finished  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"devices": ["cuda:0"]}, "node 2 trains on cuda in fp32, node 0 on cpu in fp32; use the same on every node"),
        ({"environment": {"torch": "2", "precision": "bf16"}}, "node 2 trains on cpu in bf16, node 0 on cpu in fp32"),
    ],
)
def test_nodes_with_different_devices_or_precision_are_refused(theirs: dict[str, Any], message: str) -> None:
    mine = dataclasses.replace(builders.plan(round_=0), digests=part()["digests"], environment=part()["environment"])
    with pytest.raises(UserError) as error:
        agreement.join_plans(mine, Told(1, {0: part(), 2: part(**theirs)}))  # type: ignore[arg-type]
    assert message in str(error.value)
    other = part(environment={"torch": "3", "precision": "fp32"})
    plan = agreement.join_plans(mine, Told(1, {0: part(), 2: other}))  # type: ignore[arg-type]
    assert plan.notes == ("node 2 has a different environment from node 0 (torch 3, not 2)",)


def test_only_places_and_processes_may_differ_between_nodes() -> None:
    """A key is in this list because of what it does: a new one belongs here only if no other node depends on it."""
    places = {"train_path", "test_path", "dataset", "model", "checkpoints_dir", "job_name"}
    own = places | {"site_ids", "threads_per_site", "author", "stall_timeout", "verbosity"}
    keys = Config().to_mapping()
    refused = dict[str, str]()
    for name in keys:
        try:
            agreement.agree_on_config(Config(), Told(0, {1: keys | {name: "another"}}))  # type: ignore[arg-type]
        except UserError as error:
            refused[name] = str(error)
    assert keys.keys() - refused.keys() == own
    assert all(f"different configurations: {name}='another' and" in told for name, told in refused.items())
