"""Federated averaging: the loop over the rounds."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import metrics, predictions
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.gradient_norms import gradient_norms
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.server import ServerOptimiser
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site import Site
from scaling_fl.federated.worker_sites import WorkerSites
from scaling_fl.progress import SiteObserver

# Called on every worker after each round, and after the evaluation that precedes round 1.
OnRoundEnd = Callable[[ServerState, dict[str, Any]], None]


def run(
    config: Config,
    worker_sites: WorkerSites,
    collectives: Collectives,
    state: ServerState,
    server: ServerOptimiser,
    on_round_end: OnRoundEnd,
    reported: bool = False,
    observer: SiteObserver | None = None,
) -> None:
    """Run federated averaging, or a baseline, from `state.round` to `config.num_rounds`.

    McMahan et al. 2017, algorithm 1, with the server optimiser of Reddi et al. 2021. Every worker executes every line;
    together they act as the server. Per round, with S the cohort and w_k the weight of site k (its share of the cohort's
    examples, or as `weighting` says):

        delta_k = params − (site k's parameters after local training)
        params ← server step with Σ_S w_k × delta_k

    `reported`: whether `state.round` has been evaluated and reported already; if not, the run starts with that.
    `observer` is told of each site.
    """
    observer = observer or SiteObserver()
    if not reported:
        _report(worker_sites, collectives, state, on_round_end)
    for round_ in range(state.round + 1, config.num_rounds + 1):
        results: dict[str, Any] = {}
        with _timed(results, "train"):
            weighted_sum, trained, start = collectives.weighted_sum(), [], time.perf_counter()
            for site, weight in worker_sites.participants(round_):
                observer.site_begins(site.number)
                with _site_in_error_note(site, round_):
                    delta, site_metrics = site.train(state.params, round_, state.extra)
                if config.has_global_model:
                    weighted_sum.add(site.number, delta, weight)
                trained.append(site_metrics)
                observer.site_ends(site.number, site_metrics.loss, site_metrics.accuracy)
            observer.sites_end()
            by_worker = collectives.all_gather((trained, time.perf_counter() - start))
        results |= _training_results(config, worker_sites, round_, by_worker, results["seconds.train"])
        with state.lock:
            state.partly_updated = True
            with _timed(results, "aggregate"):
                scale = worker_sites.weights(round_).scale
                for chunk, mean_delta in collectives.weighted_mean(weighted_sum) if config.has_global_model else ():
                    server.step(state, state.scaled(mean_delta, scale, chunk), chunk)
            state.round, state.results, state.partly_updated = round_, results, False
        _report(worker_sites, collectives, state, on_round_end)


def _training_results(
    config: Config,
    worker_sites: WorkerSites,
    round_: int,
    by_worker: list[tuple[list[metrics.SiteMetrics], float]],
    seconds: float,
) -> dict[str, float]:
    """Training metrics of a round over all sites, from each worker's site metrics and busy seconds."""
    sites = [site_metrics for trained, _ in by_worker for site_metrics in trained]
    busy = [worker_seconds for _, worker_seconds in by_worker]
    return metrics.training(sites, each=len(worker_sites.shards.sizes) <= metrics.MAX_SITES_WITH_METRICS) | {
        "learning_rate": learning_rate(config, round_, 1.0),
        "seconds.idle": max(busy) - sum(busy) / len(busy),  # mean wait for the slowest worker
        "examples_per_second": sum(site.count for site in sites) / seconds,
    }


def _report(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, on_round_end: OnRoundEnd) -> None:
    """Evaluate `state.round` if it is due, and report it. The round may be checkpointed in the meantime."""
    evaluated: dict[str, Any] = {}
    if worker_sites.resident.config.evaluation_due(state.round):
        with _timed(evaluated, "evaluate"):
            evaluated |= _evaluate(worker_sites, collectives, state)
    config = worker_sites.resident.config
    if config.log_gradient_norms and config.has_global_model and collectives.rank == 0:  # it reports the round
        evaluated |= gradient_norms(worker_sites.resident, state.params)
    with state.lock:
        on_round_end(state, state.results | evaluated)


def _evaluate(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> dict[str, float]:
    """Metrics on the test set and on the held-back examples, the same on every worker.

    They are those of the global model or, without one, the mean over the sites' own models.
    """
    resident, results = worker_sites.resident, dict[str, float]()
    for name, held_back in (("validation", False), ("held_back", True)):
        if held_back and len(resident.held_back) == 0:
            continue
        if resident.config.has_global_model or state.round == 0:
            collector = predictions.Collector()
            predicted = resident.config.report and state.round == resident.config.num_rounds and not held_back
            batches = evaluate(
                resident, state.params, collectives.rank, collectives.num_workers, held_back,
                on_logits=collector.add if predicted else None,
            )  # fmt: skip
            if predicted:
                state.predictions = predictions.merged(collectives.all_gather(collector.collected()))
            whole = [batch for of_worker in collectives.all_gather(batches) for batch in of_worker]
            results |= metrics.validation(whole, name)
            state.confusion[name] = metrics.confusion_matrix(whole)
        else:
            by_site = [
                (metrics.validation(batches, name), metrics.confusion_matrix(batches))
                for site, _ in worker_sites.participants(state.round)
                for batches in [evaluate(resident, site.own_params(state.params), 0, 1, held_back)]
            ]
            sites = [site for of_worker in collectives.all_gather(by_site) for site in of_worker]
            results |= metrics.mean_over_sites([of_site for of_site, _ in sites])
            state.confusion[name] = np.sum([confusion for _, confusion in sites], axis=0)
    return results


@contextmanager
def _site_in_error_note(site: Site, round_: int) -> Iterator[None]:
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
