import dataclasses
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import metrics, round_evaluation, rounds
from scaling_fl.federated.metrics import BatchMetrics
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.server import SGD
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import Shards, SiteTests, write_shards
from scaling_fl.progress import SiteObserver
from tests import builders

SHARDS = [np.arange(7), np.arange(7, 40)]


@pytest.mark.parametrize(
    ("first", "reported", "eval_every", "rounds_seen", "evaluated"),
    [
        (0, False, 1, [0, 1, 2, 3], [0, 1, 2, 3]),
        (0, False, 2, [0, 1, 2, 3], [0, 2, 3]),
        (2, True, 5, [3], [3]),
        (2, False, 1, [2, 3], [2, 3]),
        (2, False, 5, [2, 3], [3]),
        (3, True, 1, [], []),
    ],
)
def test_each_round_is_reported_once_and_the_last_is_always_evaluated(
    tmp_path: Path, first: int, reported: bool, eval_every: int, rounds_seen: list[int], evaluated: list[int]
) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=3, eval_every=eval_every, batch_size=16)
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    state.round, state.results = first, {"known": 1.0}
    seen: dict[int, dict[str, float]] = {}

    def on_round_end(state: ServerState, results: dict[str, float]) -> None:
        assert state.round not in seen
        seen[state.round] = results

    rounds.run(config, worker_sites, collectives, state, SGD(), on_round_end, reported)
    collectives.close()
    assert [round_ for round_, results in seen.items() if "known" in results] == [first] * (not reported)
    assert list(seen) == rounds_seen
    assert [round_ for round_, results in seen.items() if "validation.accuracy" in results] == evaluated
    for round_, results in seen.items():
        names = {"seconds.train", "seconds.aggregate", "examples_per_second", "site.0.train.loss", "site.1.train.loss"}
        assert (names <= results.keys()) == (round_ > first)
        if round_ > first:
            expected = (7 * results["site.0.train.loss"] + 33 * results["site.1.train.loss"]) / 40
            assert results["train.loss"] == pytest.approx(expected)
            assert results["examples_per_second"] == pytest.approx(40 / results["seconds.train"])


@pytest.mark.parametrize("report", [True, False])
def test_predictions_are_kept_of_the_last_round_alone_and_for_the_report_alone(tmp_path: Path, report: bool) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=2, report=report, batch_size=16)
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    kept: dict[int, bool] = {}

    def on_round_end(state: ServerState, results: dict[str, float]) -> None:
        kept[state.round] = state.predictions is not None

    rounds.run(config, worker_sites, collectives, state, SGD(), on_round_end)
    collectives.close()
    assert kept == {0: False, 1: False, 2: report}
    if state.predictions is not None:
        assert state.predictions.rows.tolist() == list(range(23)), "of the test set"


@pytest.mark.parametrize(("most", "each"), [(1, False), (2, True), (3, True)])
def test_each_site_has_metrics_up_to_a_number_of_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, each: bool
) -> None:
    assert metrics.MAX_SITES_WITH_METRICS == 64
    monkeypatch.setattr(metrics, "MAX_SITES_WITH_METRICS", most)
    config = Config(site_ids=(-1, -1), num_rounds=1, batch_size=16, ditto_lambda=0.5)
    worker_sites, collectives, state = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    write_shards(tmp_path / "tests", [np.arange(3), np.arange(3, 23)])
    tests = SiteTests(worker_sites.resident.test, Shards(tmp_path / "tests"))
    worker_sites = dataclasses.replace(worker_sites, tests=tests)
    seen: list[dict[str, float]] = []
    rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, results: seen.append(results))
    collectives.close()
    for name in ("train", "site_test", "personal"):
        assert (f"site.1.{name}.loss" in seen[-1]) == each
        assert f"{name}.worst_site.accuracy" in seen[-1]


def test_the_observer_is_told_of_each_site_in_order(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []

    class Observer(SiteObserver):
        def site_begins(self, site: int) -> None:
            told.append((site,))

        def site_ends(self, site: int, loss: float, accuracy: float) -> None:
            told.append((site, loss, accuracy))

        def sites_end(self) -> None:
            told.append(())

    config = Config(site_ids=(-1,), num_sites=2, num_rounds=1, batch_size=16)
    worker = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    seen: list[dict[str, float]] = []
    rounds.run(config, *worker, SGD(), lambda _, results: seen.append(results), True, Observer())
    worker[1].close()
    ends = {site: (site, seen[0][f"site.{site}.train.loss"], seen[0][f"site.{site}.train.accuracy"]) for site in (0, 1)}
    assert told == [(1,), ends[1], (0,), ends[0], ()], "the largest site first"


def test_a_round_can_be_checkpointed_while_it_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=1, batch_size=16)
    worker = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    state, seen = worker[2], []

    def evaluate(resident: Resident, params: torch.Tensor, *which: Any, **more: Any) -> list[BatchMetrics]:
        assert state.lock.acquire(blocking=False)
        seen.append((state.round, state.results.get("site.1.train.loss"), params.clone()))
        state.lock.release()
        return plain(resident, params, *which, **more)

    plain = round_evaluation.evaluate
    monkeypatch.setattr(round_evaluation, "evaluate", evaluate)
    rounds.run(config, *worker, SGD(), lambda _, results: seen.append((results["site.1.train.loss"],)), reported=True)
    worker[1].close()
    (round_, loss, params), (reported,) = seen
    assert (round_, loss) == (1, reported)
    assert torch.equal(params, state.params)


def busy_and_idle(rank: int, num_workers: int, memory: SharedMemory, folder: Path) -> tuple[list[float], ...]:
    """Run a worker; return its seconds of training, and the `seconds.idle` and `seconds.train` of each round."""
    config = Config(num_rounds=1, batch_size=16)
    worker = builders.worker(folder, config, builders.bert(), SHARDS, rank, num_workers, memory)
    train, busy, idle, told = Site.train, list[float](), list[float](), list[float]()
    now = 0.0  # of a clock that advances only while a site trains
    rounds.time = types.SimpleNamespace(perf_counter=lambda: now)  # type: ignore[assignment]

    def train_and_advance_clock(self: Site, params: torch.Tensor, round_: int, *more: torch.Tensor) -> Any:
        nonlocal now
        result = train(self, params, round_, *more)
        now += 1 + rank
        busy.append(1 + rank)
        return result

    Site.train = train_and_advance_clock  # type: ignore[assignment, method-assign]

    def tell(_: ServerState, results: dict[str, float]) -> None:
        idle.append(results["seconds.idle"])
        told.append(results["seconds.train"])

    rounds.run(config, *worker, SGD(), tell, reported=True)
    worker[1].close()
    return busy, idle, told


def test_idle_time_is_the_mean_wait_for_the_slowest_worker(run_distributed: Any, tmp_path: Path) -> None:
    """The slower of two workers never waits, and the other waits for the difference: the mean is half of that."""
    builders.resident(tmp_path, Config(), builders.bert())  # writes the token stores
    ((quick,), idle, told), ((slow,), idle_of_slow, told_by_slow) = run_distributed(busy_and_idle, 2)
    assert idle == idle_of_slow == [pytest.approx(abs(slow - quick) / 2)]
    assert (told, told_by_slow) == ([quick], [slow])


def test_federated_training_learns(tmp_path: Path) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=8, num_local_epochs=3, batch_size=5, learning_rate=5e-3)
    worker = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    seen: list[float] = []
    rounds.run(config, *worker, SGD(), lambda _, results: seen.append(results["validation.accuracy"]))
    worker[1].close()
    assert seen[0] < 0.6
    assert seen[-1] > 0.75


@pytest.mark.parametrize("fails", [True, False])
def test_the_state_is_marked_while_a_server_step_is_under_way(tmp_path: Path, fails: bool) -> None:
    """A checkpoint of a state of which only some chunks are updated would be of no round."""
    config = Config(site_ids=(-1, -1), num_rounds=1, batch_size=16)
    worker = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    state, seen = worker[2], []

    class Server(SGD):
        def step(self, state: ServerState, delta: torch.Tensor, chunk: slice) -> None:
            seen.append((state.partly_updated, state.lock.locked(), state.round, state.results))
            super().step(state, delta, chunk)
            if fails:
                raise ValueError("in the middle of it")

    def run() -> None:
        rounds.run(config, *worker, Server(), lambda state, _: reported.append(state.lock.locked()), reported=True)

    reported: list[bool] = []
    if fails:
        with pytest.raises(ValueError, match="in the middle of it"):
            run()
    else:
        run()
    worker[1].close()
    assert seen == [(True, True, 0, {})]
    assert reported == [True] * (not fails), "no checkpoint is taken while a round is reported"
    assert (state.partly_updated, state.round, state.lock.locked()) == (fails, 0 if fails else 1, False)


def test_an_error_in_local_training_names_site_and_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=5, batch_size=16)
    worker = builders.worker(tmp_path, config, builders.bert(), SHARDS)
    worker[2].round = 3

    def fail(self: Site, params: torch.Tensor, round_: int, *more: torch.Tensor) -> Any:
        if self.number == 1:
            raise ValueError("bad text")
        return train(self, params, round_, *more)

    train = Site.train
    monkeypatch.setattr(Site, "train", fail)
    with pytest.raises(ValueError, match="bad text") as error:
        rounds.run(config, *worker, SGD(), lambda *_: None, reported=True)
    worker[1].close()
    assert error.value.__notes__ == ["at site 1, in round 4"]


def test_the_reported_learning_rate_is_the_one_at_the_end_of_the_round(tmp_path: Path) -> None:
    """Linear decay from 0.1 over 4 rounds."""
    config = Config(site_ids=(-1, -1), num_rounds=4, batch_size=64, lr_schedule="linear", learning_rate=0.1)
    worker, seen = builders.worker(tmp_path, config, builders.bert(), SHARDS), list[float]()
    rounds.run(config, *worker, SGD(), lambda _, results: seen.append(results["learning_rate"]), reported=True)
    worker[1].close()
    assert seen == pytest.approx([0.075, 0.05, 0.025, 0.0])


@pytest.mark.parametrize(
    ("keys", "more"),
    [
        ({"scaffold": "II", "optimiser": "sgd", "weighting": "uniform"}, lambda layout: 4 * layout.trained),
        ({"secure_aggregation": True}, lambda layout: 2 * 32 + 2 * 48),  # the other site's keys and shares
    ],
)
def test_the_bytes_of_a_round_count_what_methods_send_beside_the_parameters(
    tmp_path: Path, keys: dict[str, Any], more: Any
) -> None:
    config, module = Config(site_ids=(-1, -1), num_rounds=1, batch_size=16, **keys), builders.bert()
    size = sum(parameter.numel() for parameter in module.parameters())
    worker, seen = builders.worker(tmp_path, config, module, SHARDS), list[dict[str, float]]()
    rounds.run(config, *worker, SGD(), lambda _, results: seen.append(results), reported=True)
    worker[1].close()
    assert seen[0]["bytes.down"] == 2 * (4 * size + more(worker[0].resident.model.layout))


def test_before_round_1_the_one_initial_model_is_evaluated_even_without_a_global_model(tmp_path: Path) -> None:
    config = Config(site_ids=(-1, -1), num_rounds=1, batch_size=64, baseline="local_only")
    worker, seen = builders.worker(tmp_path, config, builders.bert(), SHARDS), list[dict[str, Any]]()

    class Stop(Exception):
        pass

    def stop_after_the_first_report(state: ServerState, results: dict[str, Any]) -> None:
        seen.append(results)
        raise Stop

    with pytest.raises(Stop):
        rounds.run(config, *worker, SGD(), stop_after_the_first_report)
    worker[1].close()
    assert {name for name in seen[0] if name.startswith("validation.")} == {
        "validation.loss", "validation.accuracy", "validation.macro_f1", "validation.examples",
    }  # fmt: skip
