#!/usr/bin/env python
"""Local training of one site against the Hugging Face Trainer: examples per second, and use of the processor.

    ./run-local.sh benchmarks/local_training.py --model models/all-MiniLM-L6-v2 --train-path data/agnews/train.csv

Both train the same model on the same texts, with the same length limit (128), batch size (32), AdamW and threads. Ours
uses the environment that the launcher sets for workers, the Trainer the defaults. The Trainer shuffles plainly by
default; `train_sampling_strategy="group_by_length"` comes closest to our batches.
"""

import argparse
import statistics
import sys

import measure

from scaling_fl.runtime import fork_server

OURS = """
import dataclasses, json, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.task_loader import load_task
from scaling_fl.federated import fast_dropout
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.models.loading import load_model
model, path, threads, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
fast_dropout.enable()
config = Config(task_name="agnews", train_path=path, test_path=path, model=model)
task = load_task(config)
loaded = load_model(model, task.label_names, [], config.max_seq_len, 1)
with tempfile.TemporaryDirectory() as folder:
    token_store.write(Path(folder) / "train", loaded.tokenizer, task.train.texts, task.train.labels, config.max_seq_len)
    store = token_store.TokenStore(Path(folder) / "train", loaded.tokenizer.pad_token_id)
    flat = torch.zeros(Layout(loaded.module).size)
    times = []
    resident = Resident(config, FlatModel(loaded.module, flat), store, store, torch.device("cpu"),
                        lambda: times.append(time.perf_counter()))
    rng = np.random.default_rng(int(sys.argv[5]))
    params = flat.clone()
    Site(0, rng.permutation(len(store))[:64], resident).train(params, 1)  # warm up
    shard = rng.permutation(len(store))[: batches * config.batch_size]
    start = time.perf_counter()
    Site(0, shard, resident).train(params, 2)
    seconds = time.perf_counter() - start
    body = sum(p.numel() for n, p in loaded.module.named_parameters() if "embeddings" not in n)
    print(json.dumps([len(shard) / seconds, 6 * body * int(store.lengths[shard].sum()) / seconds]))
"""
TRAINER = """
import json, sys, tempfile, time
import numpy as np, torch, transformers
sys.path.insert(0, sys.argv[7])
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
model, path, threads, batches, sampling = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[6]
torch.set_num_threads(threads)
config = Config(task_name="agnews", train_path=path, test_path=path, model=model)
task = load_task(config)
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
module = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=4, dtype=torch.float32)
order = np.random.default_rng(int(sys.argv[5])).permutation(len(task.train))[: batches * config.batch_size]
encoded = tokenizer([task.train.texts[i] for i in order], truncation=True, max_length=config.max_seq_len, padding=False)
rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(task.train.labels[i])}
        for ids, i in zip(encoded["input_ids"], order)]
class Clock(transformers.TrainerCallback):
    def on_step_end(self, arguments, state, control, **kwargs):
        times.append(time.perf_counter())
times = []
with tempfile.TemporaryDirectory() as folder:
    arguments = transformers.TrainingArguments(
        folder, per_device_train_batch_size=config.batch_size, num_train_epochs=1, learning_rate=config.learning_rate,
        lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
        logging_strategy="no", disable_tqdm=True, train_sampling_strategy=sampling)
    trainer = transformers.Trainer(module, arguments, train_dataset=rows, callbacks=[Clock()],
        data_collator=transformers.DataCollatorWithPadding(tokenizer))
    trainer.train()
print(json.dumps([(len(rows) - 2 * config.batch_size) / (times[-1] - times[1]), 0]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-path", required=True)
    parser.add_argument("--batches", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    trainer = measure.peer("trainer", "transformers==5.23.0", "accelerate==1.15.0", "fsspec", "numpy")
    measure.wait_until_quiet()
    rates = [measure.matrix_product_rate()]

    def ours() -> list[float]:
        return measure.script(
            sys.executable,
            OURS,
            options.model,
            options.train_path,
            measure.CORES,
            options.batches,
            0,
            **fork_server.LIBRARY_ENVIRONMENT,
        )

    def peer(sampling: str, batches: int) -> list[float]:
        return measure.script(
            trainer, TRAINER, options.model, options.train_path, measure.CORES, batches, 0, sampling, measure.ROOT
        )

    results = measure.in_turn(
        {
            "scaling_fl": ours,
            "Trainer, group_by_length": lambda: peer("group_by_length", options.batches),
            "Trainer, default": lambda: peer("random", options.batches // 2),
        },
        options.repeats,
    )
    rates.append(measure.matrix_product_rate())
    rate = statistics.mean(rates)
    speeds = {name: statistics.median(row[0] for row in rows) for name, rows in results.items()}
    used = statistics.median(row[1] for row in results["scaling_fl"])
    mine = speeds["scaling_fl"]
    measure.table(
        [
            (
                "local training against the Trainer's default",
                f"{mine:.1f}/s",
                f"{speeds['Trainer, default']:.1f}/s",
                f"{mine / speeds['Trainer, default']:.2f}",
                "≥ 2.5",
            ),
            (
                "… against its `group_by_length`",
                f"{mine:.1f}/s",
                f"{speeds['Trainer, group_by_length']:.1f}/s",
                f"{mine / speeds['Trainer, group_by_length']:.2f}",
                "≥ 1",
            ),
            (
                "… against this machine's matrix products",
                f"{used / 1e9:.0f} GFLOP/s",
                f"{rate / 1e9:.0f} GFLOP/s",
                f"{used / rate:.2f}",
                "≥ 0.70",
            ),
        ]
    )


if __name__ == "__main__":
    main()
