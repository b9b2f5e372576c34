"""Predictions of an evaluation that several workers share."""

import numpy as np
import torch

from scaling_fl.federated.predictions import Collector, merged


def test_predictions_of_unequal_workers_are_merged_in_order_of_rows() -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(3))
    collectors = [Collector(), Collector(), Collector()]
    for worker, rows in ((0, [6, 2]), (1, [0]), (0, [4, 5, 3]), (1, [1])):  # the third worker has no batch
        collectors[worker].add(np.array(rows), logits[rows])
    found = merged(collector.collected() for collector in collectors)
    assert found.rows.tolist() == list(range(7))
    assert found.labels.tolist() == logits.argmax(1).tolist()
    expected = np.exp(logits.double().numpy())
    expected = (expected / expected.sum(1, keepdims=True)).max(1)
    np.testing.assert_allclose(found.probabilities, expected, rtol=1e-6)
    assert found.probabilities.dtype == np.float32


def test_half_precision_logits_give_probabilities_in_single_precision() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]], dtype=torch.bfloat16)
    collector = Collector()
    collector.add(np.array([0]), logits)
    exact = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64).softmax(0)[0].item()
    np.testing.assert_allclose(merged([collector.collected()]).probabilities, [exact], rtol=1e-6)
