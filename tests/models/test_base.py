"""Weights that `trainable` freezes: outside the flat buffer and the checkpoints, the same in each worker."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.site import Site
from scaling_fl.models import base
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.state_file import read_state
from tests import builders
from tests.checkpoint.test_resume import train
from tests.federated.training import SHARD


def names(module: Any) -> set[str]:
    return {entry.name for entry in Layout(module).entries}


@pytest.mark.parametrize(
    ("trainable", "kept"), [("head", "classifier"), ("pooler|classifier", "pooler"), ("LayerNorm", "LayerNorm")]
)
def test_the_flat_buffer_holds_what_is_trained(trainable: str, kept: str) -> None:
    module = builders.bert()
    everything = names(module)
    base.freeze(module, Config(trainable=trainable))
    found = names(module)
    assert found < everything
    assert any(kept in name for name in found)
    assert Layout(module).trained == Layout(module).size
    assert everything - found == set(base.arrays(module))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert trained == found


def test_without_the_key_there_is_no_base() -> None:
    module = builders.bert()
    base.freeze(module, Config(trainable="all"))
    assert base.arrays(module) == {}
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="trainable=lyra: selects none of the model's parameters, which are bert"):
        base.freeze(builders.bert(), Config(trainable="lyra"))


def is_mapped(folder: Path, address: int) -> bool:
    """Whether the memory is a file of the folder, which all processes that map it share."""
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    bounds = [[int(bound, 16) for bound in words[0].split("-")] for words in maps]
    return any(first <= address < last for first, last in bounds)


def test_workers_share_the_file_and_cannot_change_each_others_base(tmp_path: Path) -> None:
    module, workers = builders.bert(seed=1), [builders.bert(seed=2), builders.bert(seed=3)]
    base.freeze(module, Config(trainable="head"))
    base.write(tmp_path, module, Config(trainable="head"))
    for worker in workers:
        base.attach(tmp_path, worker, Config(trainable="head"))
        assert names(worker) == names(module)
        for name, array in base.arrays(worker).items():
            assert (array == base.arrays(module)[name]).all(), name
            assert is_mapped(tmp_path, array.ctypes.data), name
    dict(workers[0].named_parameters())["bert.pooler.dense.weight"].data.zero_()
    assert base.arrays(workers[1])["bert.pooler.dense.weight"].any()


def test_a_site_trains_the_head_as_it_would_with_a_frozen_encoder(tmp_path: Path) -> None:
    """The optimiser's steps on the head are those of plain torch with the other gradients left out."""
    config = Config(batch_size=3, optimiser="sgd", learning_rate=0.1)
    module, plain = builders.bert(dropout=0.0), builders.bert(dropout=0.0)
    base.freeze(module, Config(trainable="head"))
    resident = builders.resident(tmp_path, config, module)
    before = base.arrays(module)
    before = {name: array.copy() for name, array in before.items()}
    start = resident.model.flat.clone()
    delta, _ = Site(0, SHARD, resident).train(start, 1)
    plain.bert.requires_grad_(False)
    own = builders.resident(tmp_path, config, plain)
    whole, _ = Site(0, SHARD, own).train(own.model.flat.clone(), 1)
    moved, expected = Layout(module).views(delta.clone()), Layout(plain).views(whole)
    assert moved.keys() == {"classifier.weight", "classifier.bias"}
    for name, value in moved.items():
        assert value.norm() > 0
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert all((before[name] == array).all() for name, array in base.arrays(module).items())


def test_the_base_is_in_the_exported_model_but_in_no_checkpoint(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, trainable="head", num_rounds=2, learning_rate=0.05)
    seen = train(config, tmp_path / "work")
    tensors, _ = read_state(Path(str(config.checkpoints_dir)) / "round-000002.safetensors")
    assert set(tensors) == {"classifier.weight", "classifier.bias"}
    head = sum(tensors[name].size for name in tensors)
    assert seen[2]["bytes.up"] == 4 * head * len(config.site_ids)
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(
        Path(CheckpointStore(str(config.checkpoints_dir)).url) / "model"
    )
    pretrained = transformers.AutoModel.from_pretrained(config.model)
    for name, parameter in exported.bert.named_parameters():
        assert torch.equal(parameter, dict(pretrained.named_parameters())[name]), name
    assert torch.equal(exported.classifier.weight.detach(), torch.from_numpy(tensors["classifier.weight"]))


def test_another_base_is_another_model(small_config: Config, tmp_path: Path) -> None:
    """The digest of the pre-trained weights covers what no checkpoint holds."""
    config = dataclasses.replace(small_config, trainable="head", num_rounds=1)
    train(config, tmp_path / "first")
    path = Path(config.model) / "model.safetensors"
    weights = dict(transformers.AutoModel.from_pretrained(config.model).state_dict())
    weights["pooler.dense.weight"] = weights["pooler.dense.weight"] + 1

    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(UserError, match="digest of the weights was"):
        train(dataclasses.replace(config, num_rounds=2), tmp_path / "second")


@pytest.mark.parametrize(
    ("new", "in_buffer"),
    [(["all"], {"bert.pooler.dense.weight", "classifier.weight"}), (["bert.pooler.dense.weight", "classifier.weight"], {"bert.pooler.dense.weight"})],
)  # fmt: skip
def test_new_parameters_that_are_frozen_stay_in_checkpoints(new: list[str], in_buffer: set[str]) -> None:
    """No pre-trained weights have them, so nothing else could give them back."""
    module = builders.bert()
    base.freeze(module, Config(trainable="classifier"), new)
    layout = Layout(module)
    assert in_buffer <= names(module)
    assert {entry.name for entry in layout.entries if entry.start < layout.trained} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert layout.fixed >= in_buffer - {"classifier.weight"}
