"""Evaluation of models on each site's own test rows: of the global model, and of the sites' own models."""

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from scaling_fl.distributed.collectives import Collectives
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.metrics import SiteMetrics
from scaling_fl.federated.resident import Examples
from scaling_fl.federated.worker_sites import SiteTests, WorkerSites


def of_global_model(
    worker_sites: WorkerSites, tests: SiteTests, collectives: Collectives, params: torch.Tensor
) -> list[SiteMetrics]:
    """Evaluate `params` (size,) on all sites' test rows at once; return the metrics of each site that has some."""
    resident = worker_sites.resident
    store, rows = tests.store, tests.all_rows
    parts: list[tuple[npt.NDArray[np.int64], torch.Tensor, torch.Tensor]] = []

    def keep(of_batch: npt.NDArray[np.int64], logits: torch.Tensor) -> None:
        labels = store.batch(of_batch).labels.to(logits.device)
        parts.append((of_batch, cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels))

    evaluate(resident, params, collectives.rank, collectives.num_workers, Examples(store, rows), on_logits=keep)
    mine = [(of_batch, loss.double().cpu().numpy(), correct.cpu().numpy()) for of_batch, loss, correct in parts]
    losses, hits, counts = np.zeros(len(store)), np.zeros(len(store), np.int64), store.num_predictions
    for of_worker in collectives.all_gather(mine):
        for of_batch, loss, correct in of_worker:
            at = np.repeat(of_batch, counts[of_batch])
            np.add.at(losses, at, loss)
            np.add.at(hits, at, correct)
    return [
        SiteMetrics(site, float(losses[rows].sum()), int(hits[rows].sum()), int(counts[rows].sum()))
        for site in range(len(tests.rows.sizes))
        if len(rows := tests.rows[site]) > 0
    ]


def of_own_models(
    worker_sites: WorkerSites, tests: SiteTests, collectives: Collectives, params: torch.Tensor, round_: int
) -> list[SiteMetrics]:
    """Evaluate each site's own model on its own test rows; `params` (size,) are the server's after `round_`."""
    resident, mine = worker_sites.resident, []
    for site in worker_sites.everyone():
        if len(rows := tests.rows[site.number]) > 0:
            batches = evaluate(resident, site.tuned_params(params, round_), 0, 1, Examples(tests.store, rows))
            loss, hits = sum(batch.loss_sum for batch in batches), sum(batch.num_correct for batch in batches)
            mine.append(SiteMetrics(site.number, loss, hits, sum(batch.count for batch in batches)))
    return sorted((site for found in collectives.all_gather(mine) for site in found), key=lambda site: site.site)
