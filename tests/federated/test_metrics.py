import math

import numpy as np
import pytest

from scaling_fl.federated import metrics
from scaling_fl.federated.metrics import BatchMetrics, SiteMetrics


def test_training_metrics_weight_sites_by_examples_seen() -> None:
    sites = [SiteMetrics(1, loss_sum=6.0, num_correct=1, count=2), SiteMetrics(0, loss_sum=8.0, num_correct=8, count=8)]
    assert metrics.training(sites) == {
        "train.loss": 14 / 10,  # not the mean of 3 and 1
        "train.accuracy": 9 / 10,
        "train.worst_site.loss": 3.0,
        "train.best_site.loss": 1.0,
        "train.worst_site.accuracy": 0.5,
        "train.best_site.accuracy": 1.0,
        "site.0.train.loss": 1.0,
        "site.0.train.accuracy": 1.0,
        "site.1.train.loss": 3.0,
        "site.1.train.accuracy": 0.5,
    }


def test_validation_metrics_pool_unequal_batches_in_any_order() -> None:
    batches = [
        BatchMetrics(0, 1.0, 2, 3, np.array([[2, 1], [0, 0]])),
        BatchMetrics(1, 4.0, 1, 2, np.array([[0, 0], [1, 1]])),
    ]
    # Pooled: 5 examples, 3 right. Class 0: TP 2, FN 1, FP 1; class 1: TP 1, FN 1, FP 1.
    expected = {
        "validation.loss": 1.0,
        "validation.accuracy": 3 / 5,
        "validation.macro_f1": (4 / 6 + 2 / 4) / 2,
        "validation.examples": 5,
    }
    assert metrics.validation(batches) == pytest.approx(expected)
    others = {name.replace("validation", "held_back"): value for name, value in expected.items()}
    assert metrics.validation(batches, "held_back") == pytest.approx(others)


def test_metrics_of_predicted_tokens_have_a_perplexity_and_no_classes() -> None:
    none = np.zeros((0, 0), np.int64)
    batches = [BatchMetrics(1, 4.0, 1, 4, none), BatchMetrics(0, 2.0, 3, 8, none)]
    assert metrics.validation(batches) == pytest.approx(
        {
            "validation.loss": 0.5,
            "validation.accuracy": 4 / 12,
            "validation.perplexity": 1.6487212707,  # the square root of e
            "validation.tokens": 12,
        }
    )


def test_the_perplexity_of_a_model_that_has_diverged_is_a_number_or_nan() -> None:
    assert metrics.perplexity(2.0) == math.exp(2)
    assert metrics.perplexity(1e4) == metrics.perplexity(float("inf")) == math.exp(700)
    assert math.isnan(metrics.perplexity(float("nan")))


def test_the_order_in_which_batches_arrive_does_not_matter_bitwise() -> None:
    one = np.array([[1, 0], [0, 1]])
    batches = [BatchMetrics(number, loss, 2, 2, one) for number, loss in enumerate((0.1, 0.2, 0.3))]
    assert (0.1 + 0.2) + 0.3 != (0.3 + 0.2) + 0.1
    assert metrics.validation(reversed(batches)) == metrics.validation(batches)


def test_the_order_in_which_sites_arrive_does_not_matter_bitwise() -> None:
    sites = [SiteMetrics(number, loss, 2, 2) for number, loss in enumerate((0.1, 0.2, 0.3))]
    assert (0.1 + 0.2) + 0.3 != (0.3 + 0.2) + 0.1
    assert metrics.training(sites[::-1]) == metrics.training(sites)


def test_macro_f1_counts_a_class_that_never_occurs_as_zero() -> None:
    assert metrics.macro_f1(np.array([[3, 0, 0], [0, 2, 0], [0, 0, 0]])) == pytest.approx(2 / 3)


def test_label_entropy_is_in_bits() -> None:
    assert metrics.label_entropy(np.array([0, 1, 2, 3])) == 2.0
    assert metrics.label_entropy(np.array([5, 5, 5])) == 0.0
    assert str(metrics.label_entropy(np.array([5]))) == "0.0"
    # Three quarters and one quarter: ¾ log2(4/3) + ¼ log2(4).
    assert metrics.label_entropy(np.array([0, 0, 0, 1])) == pytest.approx(0.75 * math.log2(4 / 3) + 0.5)


def test_numbers_that_json_lacks_become_text() -> None:
    assert metrics.finite_or_text({"a": 1.5, "b": float("nan"), "c": float("-inf")}) == {
        "a": 1.5, "b": "nan", "c": "-inf",
    }  # fmt: skip


def test_curves_of_single_sites_are_left_out_on_request() -> None:
    sites = [SiteMetrics(0, 6.0, 1, 2), SiteMetrics(1, 8.0, 8, 8)]
    assert metrics.training(sites, each=False) == {
        name: value for name, value in metrics.training(sites).items() if not name.startswith("site.")
    }


def test_metrics_of_the_sites_own_models_are_averaged_over_sites() -> None:
    """Sites of any size count the same; neither the best nor the worst is the first or the last."""
    sites = [
        {"validation.loss": loss, "validation.accuracy": accuracy, "validation.examples": 8}
        for loss, accuracy in ((0.5, 0.5), (1.5, 0.125), (0.25, 0.875), (1.75, 0.25))
    ]
    assert metrics.mean_over_sites(sites) == {
        "validation.loss": 1.0,
        "validation.accuracy": 0.4375,
        "validation.examples": 8,
        "validation.worst_site.accuracy": 0.125,
        "validation.best_site.accuracy": 0.875,
    }
