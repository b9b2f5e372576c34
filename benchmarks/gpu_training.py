"""Training on a GPU: one site, and the Hugging Face Trainer on the same model and texts."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.models import gpus
from scaling_fl.models.flat_parameters import FlatModel, Layout

DEVICE = torch.device("cuda:0")
SHAPES = {"BERT-base": transformers.BertConfig, "DistilBERT": transformers.DistilBertConfig}
VOCABULARY = 30522


def module(shape: str) -> Any:
    torch.manual_seed(1)
    return transformers.AutoModelForSequenceClassification.from_config(SHAPES[shape](num_labels=4))


def examples(count: int) -> tuple[list[list[int]], np.ndarray]:
    """Random token ids and labels; lengths are distributed like those of news texts."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.lognormal(3.9, 0.4, count).astype(int), 8, 128)
    return [rng.integers(1000, VOCABULARY, length).tolist() for length in lengths], rng.integers(0, 4, count)


class Tokenized:
    """A tokenizer whose input is token ids already."""

    all_special_ids, unk_token_id, pad_token_id = (), None, 0

    def __len__(self) -> int:
        return VOCABULARY

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(VOCABULARY)}

    def __call__(self, texts: Sequence[list[int]], *_: Any, **__: Any) -> dict[str, Any]:
        return {"input_ids": [list(text) for text in texts]}


def resident(
    folder: Path, shape: str, count: int, batch: int, precision: str, flat: torch.Tensor | None = None,
    deterministic: bool = False,
) -> Resident:  # fmt: skip
    if not (folder / "train").exists():
        token_store.write(folder / "train", Tokenized(), *examples(count), 128)
    store = token_store.TokenStore(folder / "train", 0, multiple=8)  # as workers on a GPU
    config = Config(batch_size=batch, precision=precision, deterministic=deterministic)
    gpus.set_up(DEVICE, config)
    built = module(shape).to(DEVICE)
    flat = torch.zeros(Layout(built).size, device=DEVICE) if flat is None else flat
    return Resident(config, FlatModel(built, flat), store, store, DEVICE)


def flops(built: Any, num_tokens: int) -> float:
    return 6.0 * num_tokens * sum(p.numel() for name, p in built.named_parameters() if "embeddings" not in name)


def ours(shape: str, batches: int, batch: int, precision: str, deterministic: bool = False) -> tuple[float, float]:
    """Examples and model FLOPs per second of one site."""
    with tempfile.TemporaryDirectory() as folder:
        home = resident(Path(folder), shape, batches * batch, batch, precision, deterministic=deterministic)
        params, everything = home.model.flat.clone(), np.arange(batches * batch)
        Site(0, everything, home).train(params, 1)  # warm up, with batches of the same lengths
        torch.cuda.synchronize()
        seconds = measure.timed(
            lambda: Site(0, everything, home).train(params, 2)
        )  # training ends with a read of the loss, which synchronises
        return len(everything) / seconds, flops(home.model.module, int(home.train.lengths.sum())) / seconds


def trainer(shape: str, batches: int, batch: int, precision: str, sampling: str) -> tuple[float, float]:
    """Examples and model FLOPs per second of the Hugging Face Trainer, in the second of two epochs."""
    ids, labels = examples(batches * batch)
    rows = [
        {"input_ids": i, "attention_mask": [1] * len(i), "labels": int(n)} for i, n in zip(ids, labels, strict=True)
    ]
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if len(times) == batches - 1:
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        return {
            "input_ids": torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]),
            "attention_mask": torch.tensor([row["attention_mask"] + [0] * (longest - len(row["attention_mask"])) for row in rows]),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=2, learning_rate=5e-5, max_grad_norm=0.0,
            lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            train_sampling_strategy=sampling, bf16=precision == "bf16", dataloader_num_workers=4,
            dataloader_persistent_workers=True,
        )  # fmt: skip
        built = module(shape)
        transformers.Trainer(
            built, arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]
        ).train()  # training ends with a read of the loss, which synchronises
        seconds = time.perf_counter() - times[batches - 1]
    return len(rows) / seconds, flops(built, sum(map(len, ids))) / seconds
