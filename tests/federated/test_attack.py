"""Attackers send or train on what their attack says; the others are left alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.federated import attackers
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from tests import builders
from tests.federated.test_buffers import module_with_buffers
from tests.federated.training import SHARD

KEYS: dict[str, Any] = {"num_sites": 5, "site_ids": [-1], "batch_size": 3, "learning_rate": 0.02, "attackers": 2}


def trained(resident: Resident, site: int, round_: int = 1, **keys: Any) -> tuple[torch.Tensor, float]:
    """The site's delta and training loss."""
    config = Config.from_mapping(KEYS | {"attackers": None} | keys)
    own = dataclasses.replace(resident, config=config)
    delta, metrics = Site(site, SHARD, own).train(START.clone(), round_)
    return delta.clone(), metrics.loss


START = builders.flat_model().flat.clone()


@pytest.fixture
def two(tmp_path: Path) -> tuple[Resident, int, int]:
    """A resident, an attacker and an honest site."""
    resident = builders.resident(tmp_path, Config.from_mapping(KEYS | {"attack": "scale"}), builders.bert())
    bad = sorted(attackers.drawn(resident.config, 5))
    return resident, bad[0], next(site for site in range(5) if site not in bad)


def test_attackers_are_drawn_by_the_seed() -> None:
    def drawn(**keys: Any) -> frozenset[int]:
        return attackers.drawn(Config.from_mapping(KEYS | {"attack": "scale"} | keys), 100)

    assert drawn() == drawn()
    assert len(drawn()) == 2
    assert drawn(attackers=100) == set(range(100))
    assert len({drawn(seed=seed) for seed in range(20)}) > 15
    assert attackers.drawn(Config(), 100) == frozenset()


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"attack": "sign_flip"}, -1),
        ({"attack": "sign_flip", "attack_strength": 3}, -3),
        ({"attack": "scale"}, 10),
        ({"attack": "scale", "attack_strength": 0.5}, 0.5),
    ],
)
def test_an_attacker_sends_a_multiple_of_its_delta(
    two: tuple[Resident, int, int], keys: dict[str, Any], factor: float
) -> None:
    resident, bad, good = two
    honest = trained(resident, bad)[0]
    assert torch.equal(trained(resident, bad, attackers=2, **keys)[0], honest * factor)
    assert torch.equal(trained(resident, good, attackers=2, **keys)[0], trained(resident, good)[0])


def test_an_attacker_sends_noise_as_long_as_its_delta(two: tuple[Resident, int, int]) -> None:
    resident, bad, _ = two
    honest = trained(resident, bad)[0]
    keys = {"attackers": 2, "attack": "gaussian", "attack_strength": 2}
    noise, again, later = (trained(resident, bad, round_, **keys)[0] for round_ in (1, 1, 2))
    assert torch.equal(noise, again)
    assert not torch.allclose(noise / noise.norm(), later / later.norm(), atol=1e-3)
    other = sorted(attackers.drawn(resident.config, 5))[1]
    others = trained(resident, other, **keys)[0]
    assert abs(torch.nn.functional.cosine_similarity(noise, others, dim=0)) < 0.1, "each attacker draws its own"
    assert noise.norm().item() == pytest.approx(2 * honest.norm().item(), rel=1e-4)
    assert abs(torch.nn.functional.cosine_similarity(noise, honest, dim=0)) < 0.1
    layout = resident.model.layout
    within = torch.cat([view.flatten() for view in layout.views(noise).values()])
    assert abs(within.mean()) < within.std() / 10
    assert within.norm().item() == pytest.approx(noise.norm().item(), rel=1e-6), (
        "nothing is between the tensors: no checkpoint would have it"
    )
    assert len(within) < layout.trained


def test_the_upload_of_an_attacker_is_compressed_as_all_are(two: tuple[Resident, int, int]) -> None:
    """Noise has no zeros."""
    resident, bad, _ = two
    compressed = {"upload": "topk", "topk_share": 0.1, "error_feedback": False}
    sent = trained(resident, bad, attackers=2, attack="gaussian", **compressed)[0]
    count = sum(view.numel() for view in resident.model.layout.views(sent).values())
    assert (sent != 0).sum() == round(0.1 * count)


def test_what_is_not_trained_has_no_part_in_an_attack(tmp_path: Path) -> None:
    """Running means of a batch norm move as at an honest site, and don't count in the length of the noise."""
    module = module_with_buffers()
    resident = builders.resident(tmp_path, Config.from_mapping(KEYS | {"attack": "gaussian"}), module)
    start, site = resident.model.flat.clone(), min(attackers.drawn(resident.config, 5))
    sent = []
    for keys in ({"attackers": None}, {"attack": "gaussian"}):
        config = Config.from_mapping(KEYS | keys | {"batch_size": 7})
        sent.append(Site(site, SHARD, dataclasses.replace(resident, config=config)).train(start, 1)[0].clone())
    honest, noise = sent
    trained_ = resident.model.layout.trained
    assert torch.equal(noise[trained_:], honest[trained_:])
    assert honest[trained_:].norm() > 0.1 * honest[:trained_].norm()
    assert noise[:trained_].norm().item() == pytest.approx(honest[:trained_].norm().item(), rel=1e-4)


def test_an_attacker_trains_on_the_labels_from_the_other_end(two: tuple[Resident, int, int]) -> None:
    """As with a store in which the labels 0, 1 and 2 are 2, 1 and 0."""
    resident, bad, good = two
    delta, loss = trained(resident, bad, attackers=2, attack="label_flip")
    store = resident.train
    flipped = dataclasses.replace(resident, train=_Flipped(store))
    expected, expected_loss = trained(flipped, bad)
    assert torch.equal(delta, expected)
    assert loss == expected_loss != trained(resident, bad)[1]
    assert trained(resident, good, attackers=2, attack="label_flip")[1] == trained(resident, good)[1]
    hits = []
    for keys, own in (({"attackers": 2, "attack": "label_flip"}, resident), ({"attackers": None}, flipped)):
        with_keys = dataclasses.replace(own, config=Config.from_mapping(KEYS | keys))
        hits.append(Site(bad, np.arange(40), with_keys).train(START.clone(), 1)[1].num_correct)
    assert hits[0] == hits[1], "its accuracy is that on the labels on which it trains"
    honest = dataclasses.replace(resident, config=Config.from_mapping(KEYS | {"attackers": None}))
    assert Site(bad, np.arange(40), honest).train(START.clone(), 1)[1].num_correct != hits[0]


class _Flipped:
    def __init__(self, store: Any):
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def batch(self, rows: Any) -> Any:
        batch = self._store.batch(rows)
        return batch._replace(labels=2 - batch.labels)
