#!/usr/bin/env python
"""Evaluation of one model against the Hugging Face Trainer's `predict`: examples per second.

    ./run-local.sh benchmarks/evaluation.py --model models/all-MiniLM-L6-v2 --train-path data/agnews/train.csv

Both evaluate the same model on the same texts, with the same length limit (128), batch size and threads, and compute the
logits of each text, the loss and the hits. Ours sorts the texts by length, always. The Trainer takes them as they come, or
as its user has sorted them.
"""

import argparse
import statistics
import sys

import measure

from scaling_fl.runtime import fork_server

# Both print examples per second and the loss; ours also its operations per second in matrix products of weights.
OURS = """
import json, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.task_loader import load_task
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.resident import Examples, Resident
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.models.loading import load_model
model, path, threads, rows, batch_size = *sys.argv[1:3], *map(int, sys.argv[3:6])
torch.set_num_threads(threads)
config = Config(task_name="agnews", train_path=path, test_path=path, model=model, val_batch_size=batch_size)
task = load_task(config)
torch.manual_seed(0)
loaded = load_model(model, task.label_names, [], config.max_seq_len, 1)
with tempfile.TemporaryDirectory() as folder:
    texts, labels = task.train.texts[: rows + batch_size], task.train.labels[: rows + batch_size]
    token_store.write(Path(folder) / "test", loaded.tokenizer, texts, labels, config.max_seq_len)
    store = token_store.TokenStore(Path(folder) / "test", loaded.tokenizer.pad_token_id)
    flat = torch.zeros(Layout(loaded.module).size)
    resident = Resident(config, FlatModel(loaded.module, flat), store, store, torch.device("cpu"))
    params = flat.clone()
    evaluate(resident, params, 0, 1, Examples(store, np.arange(rows, rows + batch_size)))  # warm up
    start = time.perf_counter()
    found = evaluate(resident, params, 0, 1, Examples(store, np.arange(rows)))
    seconds = time.perf_counter() - start
    body = sum(p.numel() for n, p in loaded.module.named_parameters() if "embeddings" not in n)
    operations = 2 * body * int(store.lengths[:rows].sum()) / seconds
    print(json.dumps([rows / seconds, sum(batch.loss_sum for batch in found) / rows, operations]))
"""
TRAINER = """
import json, sys, tempfile, time
import torch, transformers
sys.path.insert(0, sys.argv[7])
from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
model, path, threads, count, batch_size = *sys.argv[1:3], *map(int, sys.argv[3:6])
torch.set_num_threads(threads)
config = Config(task_name="agnews", train_path=path, test_path=path, model=model)
task = load_task(config)
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
module = transformers.AutoModelForSequenceClassification.from_pretrained(model, num_labels=4, dtype=torch.float32)
encoded = tokenizer(task.train.texts[: count + batch_size], truncation=True, max_length=config.max_seq_len, padding=False)
rows = [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": int(label)}
        for ids, label in zip(encoded["input_ids"], task.train.labels)]
warm, rows = rows[count:], rows[:count]
if sys.argv[6] == "sorted":
    rows.sort(key=lambda row: -len(row["input_ids"]))
with tempfile.TemporaryDirectory() as folder:
    arguments = transformers.TrainingArguments(
        folder, per_device_eval_batch_size=batch_size, use_cpu=True, report_to=[], disable_tqdm=True)
    trainer = transformers.Trainer(module, arguments, data_collator=transformers.DataCollatorWithPadding(tokenizer))
    trainer.predict(warm)
    start = time.perf_counter()
    found = trainer.predict(rows)
    seconds = time.perf_counter() - start
print(json.dumps([count / seconds, found.metrics["test_loss"]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-path", required=True)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    trainer = measure.peer("trainer", "transformers==5.23.0", "accelerate==1.15.0", "fsspec", "numpy")
    measure.wait_until_quiet()
    rates = [measure.matrix_product_rate()]
    arguments = (options.model, options.train_path, measure.CORES, options.rows, options.batch_size)
    results = measure.in_turn(
        {
            "scaling_fl": lambda: measure.script(sys.executable, OURS, *arguments, **fork_server.LIBRARY_ENVIRONMENT),
            "Trainer": lambda: measure.script(trainer, TRAINER, *arguments, "unsorted", measure.ROOT),
            "Trainer, sorted": lambda: measure.script(trainer, TRAINER, *arguments, "sorted", measure.ROOT),
        },
        options.repeats,
    )
    rates.append(measure.matrix_product_rate())
    mine, plain, by_length = (statistics.median(row[0] for row in rows) for rows in results.values())
    used, rate = statistics.median(row[2] for row in results["scaling_fl"]), statistics.mean(rates)
    measure.table(
        [
            ("evaluation against the Trainer's `predict`", f"{mine:.0f}/s", f"{plain:.0f}/s", f"{mine / plain:.2f}", "≥ 1.3"),
            ("… of texts sorted by length", f"{mine:.0f}/s", f"{by_length:.0f}/s", f"{mine / by_length:.2f}", "≥ 1.3"),
            ("… against this machine's matrix products", f"{used / 1e9:.0f} GFLOP/s", f"{rate / 1e9:.0f} GFLOP/s",
             f"{used / rate:.2f}", ""),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
