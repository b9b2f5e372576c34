"""The rounds of federated training: this loop, and nothing else."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import metrics
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.server import SGD, Adaptive
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import WorkerSites

# Called on every worker after each round, and after the evaluation that precedes round 1.
OnRoundEnd = Callable[[ServerState, dict[str, Any]], None]


def run(
    config: Config,
    worker_sites: WorkerSites,
    collectives: Collectives,
    state: ServerState,
    server: SGD | Adaptive,
    on_round_end: OnRoundEnd,
    reported: bool = False,
) -> None:
    """Federated averaging, or a baseline, from `state` to round `config.num_rounds`, on every worker at once.

    Every worker enters every line of this loop. `reported`: whether the round of `state` is; if not, that comes first.
    """
    if not reported:
        _report(worker_sites, collectives, state, on_round_end)
    for round_ in range(state.round + 1, config.num_rounds + 1):
        results: dict[str, Any] = {}
        with _timed(results, "train"):
            total, mine, start = collectives.weighted_sum(), [], time.perf_counter()
            for site, weight in worker_sites.participants(round_):
                with _named(site, round_):
                    delta, trained = site.train(state.params, round_)
                if config.has_global_model:
                    total.add(site.number, delta, weight)
                mine.append(trained)
            work = collectives.all_gather((mine, time.perf_counter() - start))
        everyone = [trained for of_worker, _ in work for trained in of_worker]
        results |= metrics.training(everyone, each=len(worker_sites.shards.sizes) <= metrics.MOST_SITES)
        results |= {"learning_rate": learning_rate(config, round_, 1.0)}
        busy = [seconds for _, seconds in work]
        results["seconds.idle"] = max(busy) - sum(busy) / len(busy)  # of a worker, until the slowest is done
        results["examples_per_second"] = sum(m.count for m in everyone) / results["seconds.train"]
        with state.lock:
            state.partly_updated = True
            with _timed(results, "aggregate"):
                for part, delta in collectives.weighted_mean(total) if config.has_global_model else ():
                    server.step(state, delta, part)
            state.round, state.results, state.partly_updated = round_, results, False
        _report(worker_sites, collectives, state, on_round_end)


def _report(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, on_round_end: OnRoundEnd) -> None:
    """Evaluate the round that is complete, where it is due, and tell of it. Meanwhile it can be published already."""
    evaluated: dict[str, Any] = {}
    if worker_sites.resident.config.evaluation_due(state.round):
        with _timed(evaluated, "evaluate"):
            evaluated |= _evaluate(worker_sites, collectives, state)
    with state.lock:
        on_round_end(state, state.results | evaluated)


def _evaluate(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> dict[str, float]:
    """Metrics on the whole test set and on what is held back, the same on every worker: of the global model, or over
    the sites' own.
    """
    resident, results = worker_sites.resident, dict[str, float]()
    for name, held_back in (("validation", False), ("held_back", True)):
        if held_back and len(resident.held_back) == 0:
            continue
        if resident.config.has_global_model or state.round == 0:
            mine = evaluate(resident, state.params, collectives.rank, collectives.num_workers, held_back)
            results |= metrics.validation((batch for part in collectives.all_gather(mine) for batch in part), name)
        else:
            own = [
                metrics.validation(evaluate(resident, site.own_params(state.params), 0, 1, held_back), name)
                for site, _ in worker_sites.participants(state.round)
            ]
            results |= metrics.mean_over_sites([site for part in collectives.all_gather(own) for site in part])
    return results


@contextmanager
def _named(site: Site, round_: int) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"at site {site.number}, in round {round_}")
        raise


@contextmanager
def _timed(results: dict[str, Any], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    results[f"seconds.{phase}"] = time.perf_counter() - start
