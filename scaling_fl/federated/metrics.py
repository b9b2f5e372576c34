"""Metrics, kept as sums and counts and divided once at the end; label entropy."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scaling_fl.distributed.messages import sendable

MAX_SITES_WITH_METRICS = 64  # beyond this many, per-site curves are unreadable


@sendable
@dataclass(frozen=True)
class SiteMetrics:
    """Metrics of one site's local training in one round, over all local epochs: with dropout, as the model changes."""

    site: int
    loss_sum: float  # summed over `count` predictions
    num_correct: int
    count: int  # of predictions: of labels, one for each example that was seen, or of tokens

    @property
    def loss(self) -> float:
        return self.loss_sum / self.count

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.count


@sendable
@dataclass(frozen=True)
class BatchMetrics:
    """Metrics of one evaluation batch."""

    batch: int  # index in the fixed order of the whole set
    loss_sum: float
    num_correct: int
    count: int  # of predictions
    confusion: npt.NDArray[np.int64]  # (C, C): rows are true labels, columns predictions; (0, 0) with tokens


def training(sites: Sequence[SiteMetrics], each: bool = True) -> dict[str, float]:
    """Return `train.*` over all sites of a round, of the worst and the best site, and, if `each`, `site.N.train.*`.

    Nothing if no site takes part. Sums run in the order of the sites: the number of workers doesn't affect the result.
    """
    if not sites:
        return {}
    sites = sorted(sites, key=lambda s: s.site)
    count = sum(site.count for site in sites)
    result = {
        "train.loss": sum(site.loss_sum for site in sites) / count,
        "train.accuracy": sum(site.num_correct for site in sites) / count,
        "train.worst_site.loss": max(site.loss for site in sites),
        "train.best_site.loss": min(site.loss for site in sites),
        "train.worst_site.accuracy": min(site.accuracy for site in sites),
        "train.best_site.accuracy": max(site.accuracy for site in sites),
    }
    for site in sites if each else ():
        result[f"site.{site.site}.train.loss"] = site.loss
        result[f"site.{site.site}.train.accuracy"] = site.accuracy
    return result


def validation(batches: Iterable[BatchMetrics], name: str = "validation") -> dict[str, float]:
    """Return `<name>.*` of one model. Sums run in batch order: the number of workers doesn't affect the result."""
    ordered = sorted(batches, key=lambda b: b.batch)
    confusion, count = confusion_matrix(ordered), sum(b.count for b in ordered)
    loss = sum(b.loss_sum for b in ordered) / count
    found = {f"{name}.loss": loss, f"{name}.accuracy": sum(b.num_correct for b in ordered) / count}
    if confusion.size:
        return found | {f"{name}.macro_f1": macro_f1(confusion), f"{name}.examples": count}
    return found | {f"{name}.perplexity": perplexity(loss), f"{name}.tokens": count}


def perplexity(loss: float) -> float:
    """Return exp(loss): as uncertain as a choice among so many tokens."""
    return math.exp(min(loss, 700.0))  # exp(710) overflows


def by_bytes(loss: float, num_tokens: int, num_bytes: int, name: str = "validation") -> dict[str, float]:
    """Return `<name>.bits_per_byte` of documents of `num_tokens` tokens and `num_bytes` bytes.

    It is comparable between tokenizers. `loss` is per predicted token; the few that begin a block count as the others do.
    """
    return {f"{name}.bits_per_byte": loss * num_tokens / math.log(2) / num_bytes} if num_bytes else {}


def confusion_matrix(batches: Iterable[BatchMetrics]) -> npt.NDArray[np.int64]:
    """Return the sum over the batches (C, C): rows are true labels, columns predictions."""
    return np.sum([batch.confusion for batch in batches], axis=0, dtype=np.int64)


def per_class(labels: Sequence[str], confusion: Sequence[Sequence[int]]) -> list[dict[str, str | int | float]]:
    """Return precision, recall, F1 and the number of examples of each class; 0 where a quotient has no value.

    `confusion` is [true label][predicted label].
    """
    predicted = [sum(column) for column in zip(*confusion, strict=True)]
    rows: list[dict[str, str | int | float]] = []
    for number, (label, row) in enumerate(zip(labels, confusion, strict=True)):
        hits, examples = row[number], sum(row)
        rows.append(
            {
                "label": label,
                "precision": hits / predicted[number] if predicted[number] else 0.0,
                "recall": hits / examples if examples else 0.0,
                "f1": 2 * hits / (predicted[number] + examples) if predicted[number] + examples else 0.0,
                "examples": examples,
            }
        )
    return rows


def mean_over_sites(sites: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the sites' metrics, each of the site's own model; add the worst and the best accuracy."""
    result = {name: sum(site[name] for site in sites) / len(sites) for name in sites[0]}
    for name in [name for name in result if name.endswith(".accuracy")]:
        values, of = [site[name] for site in sites], name.removesuffix(".accuracy")
        result |= {f"{of}.worst_site.accuracy": min(values), f"{of}.best_site.accuracy": max(values)}
    return result


def over_sites(name: str, sites: Sequence[SiteMetrics], each: bool = True) -> dict[str, float]:
    """Metrics of each site on its own test rows, as `<name>.*`.

    `<name>.loss` and `.accuracy` are over all examples. The others are over sites, whatever their size: mean, population
    standard deviation, worst and best, and the mean of the worst tenth (one site or more). If `each`, `site.N.<name>.*`.
    """
    accuracies = sorted(site.accuracy for site in sites)
    count = sum(site.count for site in sites)
    result = {
        f"{name}.loss": sum(site.loss_sum for site in sites) / count,
        f"{name}.accuracy": sum(site.num_correct for site in sites) / count,
        f"{name}.mean_site.accuracy": float(np.mean(accuracies)),
        f"{name}.std_site.accuracy": float(np.std(accuracies)),
        f"{name}.worst_site.accuracy": accuracies[0],
        f"{name}.worst_tenth.accuracy": float(np.mean(accuracies[: math.ceil(len(accuracies) / 10)])),
        f"{name}.best_site.accuracy": accuracies[-1],
    }
    for site in sites if each else ():
        result[f"site.{site.site}.{name}.loss"] = site.loss
        result[f"site.{site.site}.{name}.accuracy"] = site.accuracy
    return result


def macro_f1(confusion: npt.NDArray[np.int64]) -> float:
    """Return the unweighted mean over classes of F1 = 2 TP / (2 TP + FP + FN); 0 if a class never occurs.

    `confusion` is (C, C): rows are true labels, columns predictions.
    """
    hits = np.diag(confusion)
    total = confusion.sum(axis=0) + confusion.sum(axis=1)  # 2 TP + FP + FN
    return float(np.mean(np.divide(2 * hits, total, out=np.zeros(len(hits)), where=total > 0)))


def label_entropy(labels: npt.NDArray[np.integer]) -> float:
    """Return the Shannon entropy of the labels in bits: log2(C) for C balanced classes, 0 for one class."""
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0


def finite_or_text(values: Mapping[str, float | str]) -> dict[str, float | str]:
    """Return the values with NaN and infinities as text: strict JSON has no such numbers."""
    return {key: v if isinstance(v, str) or np.isfinite(v) else str(v) for key, v in values.items()}
