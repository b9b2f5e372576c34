"""Federated averaging: the loop over the rounds."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from scaling_fl.config.schema import Config
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import aggregation, local_work, metrics
from scaling_fl.federated.algorithms import lora_ranks
from scaling_fl.federated.compression import traffic
from scaling_fl.federated.gradient_norms import gradient_norms
from scaling_fl.federated.lr_schedule import learning_rate
from scaling_fl.federated.round_evaluation import evaluate_round
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
    examples, or as `weighting` says; `aggregation` may combine the deltas otherwise):

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
            combination = aggregation.begin(worker_sites, collectives, state, round_)
            mean = combination if aggregation.takes_params(combination, config) else None
            trained, start = [], time.perf_counter()
            for site in worker_sites.participants(round_):
                observer.site_begins(site.number)
                with _site_in_error_note(site, round_):
                    row, site_metrics = site.train(state.params, round_, state.extra, mean is not None)
                (combination.add if mean is None else mean.add_params)(site.number, row)
                trained.append(site_metrics)
                observer.site_ends(site.number, site_metrics.loss, site_metrics.accuracy)
            observer.sites_end()
            by_worker = collectives.all_gather((trained, time.perf_counter() - start))
        results |= _training_results(config, worker_sites, round_, by_worker, results["seconds.train"])
        with state.lock:
            state.partly_updated = True
            with _timed(results, "aggregate"):
                for chunk, mean_delta in combination.combined():
                    server.step(state, mean_delta, chunk)
            state.round, state.results, state.partly_updated = round_, results | combination.results, False
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
    sizes, predictions = worker_sites.shards.sizes, sum(site.count for site in sites)
    num_examples = sum(work.examples for work in local_work.of_round(config, sizes, round_))
    of_tokens = worker_sites.resident.train.predicted is not None
    return metrics.training(sites, each=len(sizes) <= metrics.MAX_SITES_WITH_METRICS) | {
        "learning_rate": learning_rate(config, round_, 1.0),
        **_traffic(worker_sites, [site.site for site in sites]),
        "seconds.idle": max(busy) - sum(busy) / len(busy),  # mean wait for the slowest worker
        "examples_per_second": num_examples / seconds,
        **({"train.tokens": predictions, "tokens_per_second": predictions / seconds} if of_tokens else {}),
    }


def _traffic(worker_sites: WorkerSites, sites: list[int]) -> dict[str, float]:
    """The bytes that a network would carry to and from all sites of a round."""
    config, model = worker_sites.resident.config, worker_sites.resident.model
    down = up = 0
    for rank, number in Counter(lora_ranks.of_site(config, site) for site in sites).items():
        absent = lora_ranks.num_absent(config, model.layout, rank)
        of_each = traffic(config, model.layout, len(model.extra), len(sites), absent)
        down, up = down + number * of_each[0], up + number * of_each[1]
    return {"bytes.down": down, "bytes.up": up} if down + up else {}


def _report(worker_sites: WorkerSites, collectives: Collectives, state: ServerState, on_round_end: OnRoundEnd) -> None:
    """Evaluate `state.round` if it is due, and report it. The round may be checkpointed in the meantime."""
    evaluated: dict[str, Any] = {}
    if worker_sites.resident.config.evaluation_due(state.round):
        with _timed(evaluated, "evaluate"):
            evaluated |= evaluate_round(worker_sites, collectives, state)
    config = worker_sites.resident.config
    if config.log_gradient_norms and config.has_global_model and collectives.rank == 0:  # it reports the round
        evaluated |= gradient_norms(worker_sites.resident, state.params)
    with state.lock:
        on_round_end(state, state.results | evaluated)


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
