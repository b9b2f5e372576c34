"""What a receiver gets of compressed values, the bytes that they take, and error feedback over several rounds."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl import seeding
from scaling_fl.config.schema import Config
from scaling_fl.federated import compression, rounds
from scaling_fl.federated.local_optimiser import site_state_template
from scaling_fl.federated.server import SGD
from scaling_fl.federated.site import Site
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.models import selection
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.state_file import write_state
from tests import builders
from tests.federated.training import SHARD, SHARDS


def compressed(kind: str, values: torch.Tensor, seed: int = 1, share: float = 1.0) -> torch.Tensor:
    found = values.clone()
    compression.compress(kind, found, seed, compression.num_kept(len(found), share))
    return found


def neighbours(kind: str, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two values that each may become: the next ones on the grid, towards 0 and away from it."""
    if kind == "bf16":
        inner = (values.view(torch.int32) & -(2**16)).view(torch.float32)
        outer = ((values.view(torch.int32) & -(2**16)) + 2**16).view(torch.float32)
        return inner, outer
    scales = [part.abs().max() / 127 for part in values.split(256)]
    scale = torch.cat([s.expand(len(part)) for s, part in zip(scales, values.split(256), strict=True)])
    levels = values / scale
    return levels.trunc() * scale, (levels.trunc() + levels.sign()) * scale


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_values_are_rounded_to_a_neighbour_and_exact_in_the_mean(kind: str) -> None:
    values = torch.randn(600, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 2, 600)
    inner, outer = neighbours(kind, values)
    draws = torch.stack([compressed(kind, values, seed) for seed in range(2000)])
    step = (outer - inner).abs()
    near_inner, near_outer = (draws - inner).abs() < 1e-3 * step, (draws - outer).abs() < 1e-3 * step
    assert (near_inner | near_outer).all()
    assert near_inner.any(0).double().mean() > 0.9
    assert near_outer.any(0).double().mean() > 0.9
    # The standard error of a mean of 2000 draws is at most step / 2 / √2000.
    errors = (draws.double().mean(0) - values).abs() / step
    assert errors.max() < 5 / 2 / math.sqrt(2000)
    assert torch.equal(draws[0], compressed(kind, values, 0))
    assert not torch.equal(draws[0], draws[1])


def test_values_on_the_grid_stay() -> None:
    values = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**127])
    assert torch.equal(compressed("bf16", values), values)
    whole = torch.arange(-127, 128).float()
    assert torch.equal(compressed("int8", whole), whole)
    assert torch.equal(compressed("int8", torch.zeros(300)), torch.zeros(300))


@pytest.mark.parametrize("kind", ["bf16", "int8", "topk"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(kind: str, bad: float) -> None:
    values = torch.ones(300)
    values[7] = bad
    assert not compressed(kind, values, share=0.1).isfinite().all()


def test_a_block_has_its_own_scale() -> None:
    values = torch.cat([torch.full((256,), 1e-3), torch.full((10,), 1e3)])
    assert torch.equal(compressed("int8", values), values)


def test_long_rows_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(5000)
    monkeypatch.setattr(compression, "_CHUNK", 2 * 256)
    for kind in ("bf16", "int8"):
        inner, outer = neighbours(kind, values)
        found, step = compressed(kind, values), (outer - inner).abs()
        assert torch.minimum((found - inner).abs(), (found - outer).abs()).le(1e-3 * step).all()
        halves = [found[first : first + 512] - inner[first : first + 512] for first in (0, 512)]
        assert not torch.equal(halves[0] == 0, halves[1] == 0), "other random numbers in each part"


@pytest.mark.parametrize(("share", "kept"), [(0.25, 2), (1.0, 8), (1e-9, 1)])
def test_topk_keeps_the_largest_values(share: float, kept: int) -> None:
    values = torch.tensor([0.5, -3.0, 0.1, 2.0, -0.2, 1.0, 0.0, -1.5])
    found = compressed("topk", values, share=share)
    largest = sorted(range(8), key=lambda at: -abs(values[at]))[:kept]
    assert found.tolist() == [value if at in largest else 0 for at, value in enumerate(values.tolist())]


def test_bytes_by_hand() -> None:
    assert compression.num_bytes("fp32", 1000) == 4000
    assert compression.num_bytes("bf16", 1000) == 2000
    assert compression.num_bytes("int8", 1000) == 1000 + 4 * 4  # four blocks
    assert compression.num_bytes("topk", 1000, 0.01) == 10 * (4 + 4)


def test_the_traffic_of_a_site() -> None:
    """Compressed parts are the trained parameters. Frozen parameters and padding between tensors don't travel."""
    module = builders.bert()
    module.register_buffer("seen", torch.zeros(5))
    module.bert.embeddings.requires_grad_(False)
    layout = Layout(module)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    buffer = 4 * 5
    whole = buffer + 4 * trained
    assert compression.traffic(Config(), layout, 0) == (whole, whole)
    assert compression.traffic(Config(), layout, 7) == (whole + 28, whole + 28)
    assert compression.traffic(Config(upload="bf16"), layout, 0) == (whole, buffer + 2 * trained)
    assert compression.traffic(Config(download="bf16"), layout, 0) == (buffer + 2 * trained, whole)
    largest = Config(upload="topk", topk_share=0.25)
    assert compression.traffic(largest, layout, 0) == (whole, buffer + 8 * round(0.25 * trained))
    for baseline in ("local_only", "centralised"):
        assert compression.traffic(Config(baseline=baseline), layout, 0) == (0, 0)


@pytest.mark.parametrize("kind", ["topk", "int8", "bf16"])
@pytest.mark.parametrize("feedback", [True, False])
def test_error_feedback_is_algorithm_2_of_karimireddy_et_al_2019(tmp_path: Path, kind: str, feedback: bool) -> None:
    """Three rounds of two unequal sites: what each sends, from what it would send without compression."""
    keys: dict[str, Any] = {"batch_size": 3, "optimiser": "sgd", "learning_rate": 0.2}
    resident = builders.resident(tmp_path, Config(**keys), builders.bert())
    start = resident.model.flat.clone()
    trained = resident.model.layout.trained
    write_state(tmp_path / "start", {}, {})
    config = Config(upload=kind, topk_share=0.1, error_feedback=feedback, **keys)
    store = SiteStateStore(tmp_path / "kept", tmp_path / "start") if feedback else None
    compressed_ = dataclasses.replace(resident, config=config, store=store)
    num_kept = round(0.1 * sum(view.numel() for view in resident.model.layout.views(start).values()))  # without gaps
    shards, errors = {4: SHARD, 2: SHARDS[1]}, {site: torch.zeros(trained) for site in (4, 2)}
    for round_, number in itertools.product((1, 2, 3), shards):
        plain = Site(number, shards[number], resident).train(start.clone(), round_)[0].clone()[:trained]
        sent = Site(number, shards[number], compressed_).train(start.clone(), round_)[0].clone()[:trained]
        due = plain + errors[number]
        expected = torch.zeros(trained)
        if kind == "topk":
            kept = due.abs().topk(num_kept).indices
            expected[kept] = due[kept]
        else:  # by other random numbers in each round and at each site
            expected = compressed(kind, due, seeding.torch_seed(config.seed, "upload", round_, number))
        assert torch.equal(sent, expected)
        errors[number] = due - expected if feedback else errors[number]
    assert (errors[2].norm() > 0) == feedback
    for number in shards if store is not None else ():
        assert torch.equal(store.load(number)["upload_error"], errors[number])


def test_without_error_feedback_nothing_is_sent_later_though_sites_keep_other_things(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"batch_size": 3, "optimiser": "sgd", "learning_rate": 0.2, "keep_optimiser": True}
    config = Config(upload="topk", topk_share=0.1, error_feedback=False, **keys)
    write_state(tmp_path / "start", {}, {})
    store = SiteStateStore(tmp_path / "kept", tmp_path / "start")
    alone = builders.resident(tmp_path, config, builders.bert())
    start = alone.model.flat.clone()
    keeping = dataclasses.replace(alone, store=store)
    for round_ in (1, 2):
        sent = [Site(4, SHARD, resident).train(start, round_)[0].clone() for resident in (alone, keeping)]
        assert torch.equal(*sent)
    assert "upload_error" not in store.load(4)


def test_sites_keep_a_buffer_only_for_compressed_uploads_with_error_feedback() -> None:
    layout = Layout(builders.bert())
    kept = site_state_template(Config(upload="int8"), layout)
    assert {name: array.shape for name, array in kept.items()} == {"upload_error": (layout.trained,)}
    assert Config(upload="int8").keeps_site_state
    for config in (Config(), Config(download="int8"), Config(upload="int8", error_feedback=False)):
        assert site_state_template(config, layout) == {}
        assert not config.keeps_site_state


def test_all_sites_train_from_the_parameters_as_they_arrive(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"batch_size": 3, "learning_rate": 0.02, "seed": 3}
    resident = builders.resident(tmp_path, Config(**keys), builders.bert())
    start = resident.model.flat.clone()
    received = []
    for number in (0, 1):
        config = Config(download="int8", **keys)
        site = Site(number, SHARD, dataclasses.replace(resident, config=config))
        delta = site.train(start, 2)[0].clone()
        arrived = start.clone()
        compression.compress("int8", arrived, seeding.torch_seed(3, "download", 2))
        assert torch.equal(delta, Site(number, SHARD, resident).train(arrived, 2)[0])
        received.append(arrived)
    assert torch.equal(*received)
    assert not torch.equal(received[0], start)


def test_what_is_not_trained_arrives_as_it_was_sent(tmp_path: Path) -> None:
    """Frozen parameters, and float buffers."""
    module = builders.bert()
    module.bert.embeddings.requires_grad_(False)
    resident = builders.resident(tmp_path, Config(download="int8"), module)
    sent, trained = torch.randn(resident.model.layout.size), resident.model.layout.trained
    arrived = Site(4, SHARD, resident)._downloaded(sent, 1)
    assert 0 < trained < len(sent)
    assert torch.equal(arrived[trained:], sent[trained:])
    assert not torch.equal(arrived[:trained], sent[:trained])


@pytest.mark.parametrize("keys", [{"upload": "bf16"}, {"upload": "int8", "download": "int8"}, {"upload": "topk"}])
def test_a_compressed_job_learns_and_logs_its_bytes(tmp_path: Path, keys: dict[str, Any]) -> None:
    base = {"num_sites": 3, "num_rounds": 4, "batch_size": 8, "learning_rate": 0.01, "site_ids": [-1]}
    seen: dict[str, list[dict[str, Any]]] = {}
    for name, more in (("plain", {}), ("compressed", {"topk_share": 0.5} | keys if "topk" in keys.values() else keys)):
        config = Config.from_mapping(base | more)
        (tmp_path / name).mkdir()
        worker_sites, collectives, state = builders.worker(tmp_path / name, config, builders.bert(), SHARDS)
        seen[name] = []
        rounds.run(config, worker_sites, collectives, state, SGD(), lambda _, r, n=name: seen[n].append(r))
        collectives.close()
        layout = worker_sites.resident.model.layout
        down, up = compression.traffic(config, layout, 0)
        assert [r.get("bytes.up") for r in seen[name]] == [None, *[3 * up] * 4]
        assert [r.get("bytes.down") for r in seen[name]] == [None, *[3 * down] * 4]
    losses = {name: [r["validation.loss"] for r in of] for name, of in seen.items()}
    assert np.isfinite(losses["compressed"]).all()
    assert losses["compressed"][-1] < losses["compressed"][0]
    assert losses["compressed"] != losses["plain"]
    assert losses["compressed"][-1] - losses["plain"][-1] < 0.5 * (losses["plain"][0] - losses["plain"][-1])


def test_personal_parameters_do_not_travel() -> None:
    config = Config(personal="head")
    layout = builders.flat_model().layout
    head = sum(entry.shape.numel() for entry in layout.entries if entry.name.startswith("classifier"))
    before = compression.traffic(Config(), layout, 0)
    assert [value - 4 * head for value in before] == list(compression.traffic(config, layout, 0))


def test_a_compressed_upload_leaves_personal_parameters_alone(tmp_path: Path) -> None:
    """None of them takes the place of a value that is sent, or waits to be sent; each stays at the site as trained."""
    keys = {"num_sites": 3, "site_ids": [-1], "batch_size": 4, "personal": "head"}
    kept = {}
    for name, more in (("compressed", {"upload": "topk", "topk_share": 0.01}), ("plain", {})):
        (tmp_path / name).mkdir()
        config = Config.from_mapping(keys | more)
        worker_sites, collectives, state = builders.worker(tmp_path / name, config, builders.bert(), SHARDS)
        site = next(worker_sites.participants(1))
        delta, _ = site.train(state.params, 1, state.extra)
        collectives.close()
        assert worker_sites.resident.store is not None
        kept[name] = worker_sites.resident.store.load(site.number)
        if more:
            layout = worker_sites.resident.model.layout
            num_sent = compression.num_kept(compression.num_travelling(config, layout), 0.01)
            assert (delta != 0).sum() == num_sent
            assert not kept[name]["upload_error"][selection.personal_positions(layout, "head")].any()
    assert kept["plain"]["personal"].any()
    assert torch.equal(kept["compressed"]["personal"], kept["plain"]["personal"])
