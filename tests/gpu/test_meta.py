"""Training on the meta device instead of a GPU: reading a value, which would make the CPU wait, is an error there."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.packing import pack
from scaling_fl.federated import local_training as training_module
from scaling_fl.federated import resident as resident_module
from scaling_fl.federated.local_optimiser import TORCH_OPTIMISERS
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.models import gpus, masks
from scaling_fl.models.flat_parameters import FlatModel, Layout
from tests import builders


@pytest.mark.parametrize(("tf32", "expected"), [(True, "high"), (False, "highest")])
def test_a_gpu_is_set_up_once_for_all_steps(monkeypatch: pytest.MonkeyPatch, tf32: bool, expected: str) -> None:
    inspect_mask, devices = transformers.masking_utils._ignore_bidirectional_mask_sdpa, list[torch.device]()
    causal = transformers.masking_utils._ignore_causal_mask_sdpa
    monkeypatch.setattr(transformers.masking_utils, "_ignore_causal_mask_sdpa", causal)
    find = transformers.masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", find)
    monkeypatch.setattr(
        transformers.masking_utils, "_ignore_bidirectional_mask_sdpa", inspect_mask
    )  # restored at the end
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    before = torch.get_float32_matmul_precision()
    try:
        gpus.set_up(torch.device("cuda:1"), Config(tf32=tf32))
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
    assert devices == [torch.device("cuda:1")]
    assert transformers.masking_utils._ignore_bidirectional_mask_sdpa is not inspect_mask


def write_texts(folder: Path) -> None:
    for name, count in (("train", 40), ("test", 23)):
        token_store.write(folder / name, builders.tokenizer(), *builders.texts_and_labels(count, 5), 16)


def write_blocks(folder: Path) -> None:
    for name, count in (("train", 20), ("test", 12)):
        pack(builders.write_documents(folder / f"of {name}", count), [np.arange(count)], 9, 1, folder / name, name)


@pytest.mark.parametrize(("build", "write"), [(builders.bert, write_texts), (builders.decoder, write_blocks)])
def test_no_step_reads_a_value_from_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Callable[[], Any], write: Callable[[Path], None]
) -> None:
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa", "find_packed_sequence_indices"):
        inspect_mask = getattr(transformers.masking_utils, name)
        monkeypatch.setattr(transformers.masking_utils, name, inspect_mask)  # restored at the end
    masks.disable_inspection()
    # The meta device has neither autocast nor fused optimisers.
    for module in (training_module, resident_module):
        monkeypatch.setattr(module, "precision", lambda config, device: "fp32")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setitem(TORCH_OPTIMISERS, "adamw", (torch.optim.AdamW, {"foreach": True}))

    def to_device(self: Resident, batch: token_store.Batch) -> token_store.Batch:
        return token_store.Batch(
            **{name: part.to("meta") for name, part in batch._asdict().items() if part is not None}
        )

    monkeypatch.setattr(Resident, "to_device", to_device)
    write(tmp_path)
    train, test = (token_store.TokenStore(tmp_path / name, 0) for name in ("train", "test"))
    module, steps = build().to("meta"), list[int]()
    module.config.use_cache = False  # as in jobs
    model = FlatModel(module, torch.zeros(Layout(module).size, device="meta"))
    config = Config(batch_size=3, max_grad_norm=1.0, gradient_accumulation_steps=2)
    resident = Resident(config, model, train, test, torch.device("meta"), on_step=lambda: steps.append(1))
    with pytest.raises(
        RuntimeError, match=r"item\(\) cannot be called on meta tensors"
    ):  # raised when the round's loss is read
        Site(0, np.arange(7), resident).train(model.flat.clone(), 1)
    assert len(steps) == 3, "the loss is read after all steps"
