import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.packing import pack
from scaling_fl.federated.resident import precision
from tests import builders

SHARD = np.array([1, 4, 9, 16, 25, 36, 2])


def test_attention_masks_reach_the_model_and_padding_changes_no_logit(tmp_path: Path) -> None:
    resident = builders.resident(tmp_path, Config(), builders.bert())
    resident.model.module.eval()
    lengths = resident.train.lengths
    shortest, longest = int(lengths.argmin()), int(lengths.argmax())
    assert lengths[shortest] < lengths[longest]
    with torch.inference_mode():
        alone_ = resident.logits(resident.train.batch(np.array([shortest])))[0]
        batch = resident.train.batch(np.array([shortest, longest]))
        padded = resident.logits(batch)[0]
        unmasked = resident.model.module(input_ids=batch.input_ids).logits[0]
    torch.testing.assert_close(padded, alone_, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(unmasked, alone_, atol=1e-3), "a missing mask would show in this model"


def test_token_types_of_pairs_reach_the_model(tmp_path: Path) -> None:
    texts, labels = builders.texts_and_labels(40, 5)
    pairs = texts[::-1]
    for name in ("train", "test"):
        token_store.write(tmp_path / name, builders.tokenizer(), texts, labels, 30, pairs, token_types=True)
    resident = builders.resident(tmp_path, Config(), builders.bert())
    resident.model.module.eval()
    encoded = builders.tokenizer()(
        [texts[i] for i in SHARD],
        [pairs[i] for i in SHARD],
        padding=True,
        return_token_type_ids=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        logits = resident.logits(resident.to_device(resident.train.batch(SHARD)))
        expected = resident.model.module(**encoded).logits
        untyped = resident.model.module(**{k: v for k, v in encoded.items() if k != "token_type_ids"}).logits
    torch.testing.assert_close(logits, expected)
    assert not torch.allclose(untyped, expected, atol=1e-3), "missing token types would show in this model"


def test_auto_is_float32_on_the_cpu() -> None:
    assert precision(Config(), torch.device("cpu")) == "fp32"
    assert precision(Config(precision="bf16"), torch.device("cpu")) == "bf16"


def test_logits_are_float32_in_any_precision(tmp_path: Path) -> None:
    for number, name in enumerate(("fp32", "bf16", "fp16")):
        (tmp_path / str(number)).mkdir()
        resident = builders.resident(tmp_path / str(number), Config(precision=name), builders.bert())
        assert resident.logits(resident.train.batch(SHARD)).dtype == torch.float32


@pytest.mark.parametrize(("rows", "pinned"), [([1, 1], True), ([1, 2], True), ([1, 2], False)])
def test_a_batch_goes_to_a_gpu_in_one_copy_and_without_a_mask_if_nothing_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[int], pinned: bool
) -> None:
    """`pinned`: whether the system has memory that it keeps in its place. Without a GPU, this torch has none."""
    resident = builders.resident(tmp_path, Config(), builders.bert())
    batch = resident.train.batch(np.array(rows))
    assert batch.attention_mask is not None
    padded = not batch.attention_mask.all()
    assert padded == (rows == [1, 2])
    resident.model.module.eval()
    expected = resident.logits(batch)
    copies: list[torch.Tensor] = []
    if pinned:
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    elif not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            torch.ones(1).pin_memory()
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: copies.append(self) or self.clone())
    on_gpu = dataclasses.replace(resident, device=torch.device("cuda:0")).to_device(batch)
    monkeypatch.undo()
    assert len(copies) == 1
    assert (on_gpu.attention_mask is None) == (not padded)
    torch.testing.assert_close(resident.logits(on_gpu), expected)


@pytest.mark.parametrize("left", [False, True])
def test_padding_that_a_language_model_never_sees_needs_no_mask(tmp_path: Path, left: bool) -> None:
    for name in ("train", "test"):
        pack(builders.write_documents(tmp_path / f"of {name}", 20), [np.arange(20)], 9, 1, tmp_path / name, name)
    stores = {name: token_store.TokenStore(tmp_path / name, 0, left=left) for name in ("train", "test")}
    resident = dataclasses.replace(builders.resident(tmp_path, Config(), builders.decoder()), **stores)
    batch = resident.train.batch(np.arange(len(resident.train)))
    assert batch.attention_mask is not None
    assert not batch.attention_mask.all()
    assert batch.positions is not None
    given: list[bool] = []
    resident.model.module.register_forward_pre_hook(
        lambda module, args, kwargs: given.append("attention_mask" in kwargs), with_kwargs=True
    )
    with torch.inference_mode():
        found = resident.logits(batch)
        expected = resident.model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        bare = resident.model.module(input_ids=batch.input_ids).logits
    assert given[0] == left
    torch.testing.assert_close(found, expected.flatten(0, 1)[batch.positions])
    assert torch.allclose(found, bare.flatten(0, 1)[batch.positions], atol=1e-5) == (not left)
