"""Training and evaluation of language models, against transformers' own loss on unequal sites."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.data.packing import pack
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated.aggregation import qffl
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.full_gradient import full_gradient
from scaling_fl.federated.local_batches import local_batches
from scaling_fl.models import base
from tests import builders
from tests.federated.test_numerics import assert_same_movement
from tests.federated.training import by_name, digest, train_federated

KEYS: dict[str, Any] = {
    "num_sites": 3, "num_rounds": 3, "batch_size": 4, "optimiser": "sgd", "learning_rate": 0.05, "seed": 4,
    "site_ids": [-1], "task_name": "lm", "max_seq_len": 9, "report": False,
}  # fmt: skip
SITES = np.split(np.arange(25), [3, 10])  # documents of each


def blocks(folder: Path) -> list[np.ndarray]:
    """Write the stores of blocks; return the sites' rows."""
    documents, test = builders.write_documents(folder / "a", 25), builders.write_documents(folder / "b", 8, 6)
    pack(test, [np.arange(8)], 9, 1, folder / "test", "test")
    return pack(documents, SITES, 9, 1, folder / "train", "train")


def plain_loss(store: Any, module: Any, indices: np.ndarray) -> tuple[torch.Tensor, int]:
    """Transformers' mean loss over all tokens but the first of each block, and their number."""
    batch = store.batch(indices)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    out = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels)
    return out.loss, int((labels[:, 1:] != -100).sum())


@pytest.mark.parametrize("more", [{}, {"gradient_accumulation_steps": 3}, {"trainable": "lora", "lora_rank": 2}])
def test_sites_train_on_the_mean_loss_of_a_batch_s_tokens(
    alone: Callable[..., Any], tmp_path: Path, more: dict[str, Any]
) -> None:
    config, module = Config.from_mapping(KEYS | more), builders.decoder()
    base.freeze(module, config)
    start, plain = copy.deepcopy(module), copy.deepcopy(module)
    shards = blocks(tmp_path)
    worker_sites, collectives, state = alone(config, module, shards)
    resident = worker_sites.resident
    results = train_federated(config, worker_sites, collectives, state)

    trained = [name for name, parameter in plain.named_parameters() if parameter.requires_grad]
    for round_ in range(1, 4):
        mean = {name: torch.zeros_like(plain.get_parameter(name)) for name in trained}
        losses = []
        for site, shard in enumerate(shards):
            local = copy.deepcopy(plain).train()
            optimiser = torch.optim.SGD([p for p in local.parameters() if p.requires_grad], lr=0.05)
            for indices in local_batches(config, resident.train, shard, round_, site):
                optimiser.zero_grad()
                loss, count = plain_loss(resident.train, local, indices)
                loss.backward()
                optimiser.step()
                losses.append((loss.item(), count))
            for name in trained:
                mean[name] += len(shard) / sum(map(len, shards)) * local.get_parameter(name).detach()
        with torch.no_grad():
            for name in trained:
                plain.get_parameter(name).copy_(mean[name])
        total = sum(count for _, count in losses)
        assert results[round_]["train.loss"] == pytest.approx(sum(x * n for x, n in losses) / total, rel=1e-4)
        assert results[round_]["train.tokens"] == total
        assert results[round_]["tokens_per_second"] == pytest.approx(total / results[round_]["seconds.train"])
    found = {name: value for name, value in by_name(resident, state.params).items() if name in trained}
    for part in (plain, start):
        for name in {name for name, _ in part.named_parameters(remove_duplicate=False)} - set(trained):
            del part.get_submodule(name.rpartition(".")[0])._parameters[name.rpartition(".")[2]]
    assert_same_movement(found, plain, start, share=1e-3)


def test_perplexity_is_per_token_and_bits_are_per_byte(alone: Callable[..., Any], tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS | {"num_rounds": 1, "val_batch_size": 4})
    worker_sites, collectives, state = alone(config, builders.decoder(), blocks(tmp_path))
    resident = worker_sites.resident
    results = train_federated(config, worker_sites, collectives, state)[-1]
    resident.model.load(state.params)
    module = copy.deepcopy(resident.model.module).eval()
    with torch.no_grad():
        found = [plain_loss(resident.test, module, np.array([row])) for row in range(len(resident.test))]
    tokens, nats = sum(count for _, count in found), sum(float(loss) * count for loss, count in found)
    num_bytes = sum(len(text.encode()) for text in builders.texts_and_labels(8, 6)[0])
    assert results["validation.tokens"] == tokens
    assert results["validation.loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert results["validation.perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    bits = nats / tokens * len(resident.test.tokens) / math.log(2)  # a block's first token counts as the others do
    assert results["validation.bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-5)
    assert "validation.macro_f1" not in results
    assert "validation" not in state.confusion


def test_hits_are_counted_among_predicted_tokens(alone: Callable[..., Any], tmp_path: Path) -> None:
    config = Config.from_mapping(KEYS | {"val_batch_size": 3})
    worker_sites, _, state = alone(config, builders.decoder(), blocks(tmp_path))
    resident = worker_sites.resident
    batches = evaluate(resident, state.params, 0, 1)
    hits = 0
    for row in range(len(resident.test)):
        batch = resident.test.batch(np.array([row]))
        with torch.no_grad():
            guesses = resident.model.module.eval()(input_ids=batch.input_ids).logits.argmax(-1)[0]
        hits += int((guesses[:-1] == batch.input_ids[0, 1:]).sum())
    assert sum(batch.num_correct for batch in batches) == hits
    assert 0 < hits < sum(batch.count for batch in batches)


def test_a_full_gradient_is_that_of_the_mean_loss_over_all_tokens(alone: Callable[..., Any], tmp_path: Path) -> None:
    """Of seven blocks, in two parts."""
    worker_sites, _, _ = alone(Config.from_mapping(KEYS), builders.decoder(), blocks(tmp_path))
    resident, rows = worker_sites.resident, np.array([5, 0, 3, 8, 1, 2, 9])
    plain = copy.deepcopy(resident.model.module).eval()
    loss, count = plain_loss(resident.train, plain, rows)
    assert count > 2 * len(rows)
    loss.backward()
    found = resident.model.layout.views(full_gradient(resident, rows))
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_fairness_is_by_the_mean_loss_of_a_sites_tokens(alone: Callable[..., Any], tmp_path: Path) -> None:
    """Not of its blocks, of which the last is shorter than the others."""
    shards = blocks(tmp_path)
    worker_sites, collectives, state = alone(
        Config.from_mapping(KEYS | {"fairness_q": 1.0}), builders.decoder(), shards
    )
    combination = qffl.begin(worker_sites, collectives, state, 1)
    module = worker_sites.resident.model.module.eval()
    with torch.no_grad():
        expected = {site: plain_loss(worker_sites.resident.train, module, rows)[0] for site, rows in enumerate(shards)}
    assert combination.losses == pytest.approx({site: float(loss) for site, loss in expected.items()}, rel=1e-5)


def final(rank: int, num_workers: int, memory: SharedMemory, folder: Path, config: Config, shards: Any) -> Any:
    torch.set_num_threads(1)
    module = builders.decoder()
    base.freeze(module, config)
    worker_sites, collectives, state = builders.worker(folder, config, module, shards, rank, num_workers, memory)
    results = train_federated(config, worker_sites, collectives, state)
    collectives.close()
    ours = [{k: v for k, v in r.items() if "second" not in k and not k.startswith("lora.")} for r in results]
    return digest(state.params), ours  # worker 0 alone has the results of the aggregation


@pytest.mark.parametrize("more", [{}, {"trainable": "lora", "lora_rank": 2}, {"fairness_q": 1.0}])
def test_the_result_does_not_depend_on_the_workers(run_distributed: Any, tmp_path: Path, more: dict[str, Any]) -> None:
    shards = blocks(tmp_path)
    config = Config.from_mapping(KEYS | {"num_rounds": 2} | more)
    ((alone, results),) = run_distributed(final, 1, config, shards)
    for found, others in run_distributed(final, 2, config, shards):
        assert found == alone
        assert others == results
