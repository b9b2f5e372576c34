"""The evaluation of a round: the global model, or the sites' own models, on all sets of examples."""

from typing import Any

import numpy as np

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated import choices, generation, metrics, predictions, site_evaluation
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.resident import Examples
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.worker_sites import WorkerSites


def evaluate_round(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> dict[str, float]:
    """Metrics on the test set and on the held-back examples, the same on every worker.

    They are those of the global model or, without one, the mean over the sites' own models.
    """
    resident, results = worker_sites.resident, dict[str, float]()
    sets = {"validation": resident.test_set, "held_back": resident.training_rows(resident.held_back)}
    for name, examples in sets.items():
        if len(examples.rows) == 0:
            continue
        if resident.config.has_global_model or state.round == 0:
            results |= _of_global_model(worker_sites, collectives, state, name, examples)
        else:
            results |= _of_own_models(worker_sites, collectives, state, name, examples)
    results |= _on_choices(worker_sites, collectives, state) | _on_own_rows(worker_sites, collectives, state)
    if resident.config.generate_examples and state.round == resident.config.num_rounds:
        state.generations = _generated(worker_sites, collectives, state)
    return results


def _on_choices(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> dict[str, float]:
    """Accuracy on multiple-choice questions: of the global model, or the mean over the sites' own."""
    resident, given = worker_sites.resident, worker_sites.resident.choices
    if given is None:
        return {}
    if resident.config.has_global_model or state.round == 0:
        part = choices.scored(resident, state.params, collectives.rank, collectives.num_workers, given)
        return choices.accuracies(collectives.all_gather(part), given)
    by_site = [
        (site.number, choices.accuracies([choices.scored(resident, site.own_params(state.params), 0, 1, given)], given))
        for site in worker_sites.everyone()
    ]
    sites = sorted(site for of_worker in collectives.all_gather(by_site) for site in of_worker)
    names = sites[0][1]
    return {name: float(np.mean([found[name] for _, found in sites])) for name in names}


def _generated(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> list[dict[str, Any]]:
    """What the global model writes; nothing without one."""
    resident = worker_sites.resident
    if not resident.config.has_global_model:
        return []
    rows = np.arange(min(resident.config.generate_examples, len(resident.test)))
    part = generation.generate(resident, state.params, rows[collectives.rank :: collectives.num_workers])
    found: list[dict[str, Any]] = [row for of_worker in collectives.all_gather(part) for row in of_worker]
    return sorted(found, key=lambda row: int(row["row"]))


def _on_own_rows(worker_sites: WorkerSites, collectives: Collectives, state: ServerState) -> dict[str, float]:
    """Metrics on the test rows of each site's own: of the global model, and of the sites' own models."""
    config, tests, results = worker_sites.resident.config, worker_sites.tests, dict[str, float]()
    if tests is None:
        return results
    each = len(worker_sites.shards.sizes) <= metrics.MAX_SITES_WITH_METRICS
    if config.has_global_model:
        of_sites = site_evaluation.of_global_model(worker_sites, tests, collectives, state.params)
        results |= metrics.over_sites("site_test", of_sites, each)
    if config.has_own_models and state.round > 0:
        of_sites = site_evaluation.of_own_models(worker_sites, tests, collectives, state.params, state.round)
        results |= metrics.over_sites("personal", of_sites, each)
    return results


def _of_global_model(
    worker_sites: WorkerSites, collectives: Collectives, state: ServerState, name: str, examples: Examples
) -> dict[str, float]:
    resident, collector = worker_sites.resident, predictions.Collector()
    last = state.round == resident.config.num_rounds and name == "validation"
    predicted = resident.config.report and last and examples.store.predicted is None
    batches = evaluate(
        resident, state.params, collectives.rank, collectives.num_workers, examples,
        on_logits=collector.add if predicted else None,
    )  # fmt: skip
    if predicted:
        state.predictions = predictions.merged(collectives.all_gather(collector.collected()))
    whole = [batch for of_worker in collectives.all_gather(batches) for batch in of_worker]
    if examples.store.predicted is None:
        state.confusion[name] = metrics.confusion_matrix(whole)
    return _with_bits(metrics.validation(whole, name), examples, name)


def _with_bits(found: dict[str, float], examples: Examples, name: str) -> dict[str, float]:
    """The metrics, and bits per byte of documents."""
    store, rows = examples
    return found | metrics.by_bytes(
        found[f"{name}.loss"], int(store.lengths[rows].sum()), int(store.num_bytes[rows].sum()), name
    )


def _of_own_models(
    worker_sites: WorkerSites, collectives: Collectives, state: ServerState, name: str, examples: Examples
) -> dict[str, float]:
    by_site = [
        (site.number, _with_bits(metrics.validation(batches, name), examples, name), metrics.confusion_matrix(batches))
        for site in worker_sites.everyone()
        for batches in [evaluate(worker_sites.resident, site.own_params(state.params), 0, 1, examples)]
    ]
    # In the order of the sites: the number of workers doesn't affect the sums.
    sites = sorted((site for of_worker in collectives.all_gather(by_site) for site in of_worker), key=lambda s: s[0])
    if examples.store.predicted is None:
        state.confusion[name] = np.sum([confusion for _, _, confusion in sites], axis=0)
    return metrics.mean_over_sites([of_site for _, of_site, _ in sites])
