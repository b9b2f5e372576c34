#!/usr/bin/env python
"""Training adapters on conversations at one site against the Hugging Face Trainer with peft: tokens per second.

    ./run-local.sh benchmarks/lora_training.py --model models/smollm2 --train-path agnews-train.jsonl

Both train LoRA of rank 8 on all linear layers of the same model, on the same conversations (rows with prompt and response) in
the tokenizer's chat template, with the loss on responses alone, batches of 8, AdamW and all threads. Ours uses the
environment that the launcher sets for workers, the Trainer the defaults. Tokens count without padding, whose share is in the
last row. The Trainer shuffles plainly by default; `train_sampling_strategy="group_by_length"` comes close to our batches. A third
run is given exactly ours, in their order.
"""

import argparse
import statistics
import sys

import measure

from scaling_fl.runtime import fork_server

BATCH_SIZE, LENGTH = 8, 256
_DATA = """
import json, sys, tempfile, time
from pathlib import Path
import numpy as np, torch, transformers
sys.path.insert(0, sys.argv[6])
from scaling_fl.config.schema import Config
from scaling_fl.data import conversations, token_store
model, path, threads, batches = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
batch_size, length = map(int, sys.argv[7:9])
config = Config(task_name="instructions", trainable="lora", model=model, batch_size=batch_size, max_seq_len=length,
                learning_rate=5e-4)
with open(path) as file:
    rows = [json.loads(line) for line in file]
order = np.random.default_rng(0).permutation(len(rows))[: (batches + 2) * batch_size]
texts = [json.dumps([{"role": "user", "content": rows[i]["prompt"]}, {"role": "assistant", "content": rows[i]["response"]}])
         for i in order]
folder = tempfile.TemporaryDirectory()
store_of = Path(folder.name) / "train"
"""
OURS = (
    _DATA
    + """
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.site import Site
from scaling_fl.models import base
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.models.loading import load_model
loaded = load_model(model, (), [], length, 1)
conversations.write(store_of, loaded.tokenizer, texts, length, None)
store = token_store.TokenStore(store_of, loaded.tokenizer.pad_token_id)
base.freeze(loaded.module, config)
flat = torch.zeros(Layout(loaded.module).size)
resident = Resident(config, FlatModel(loaded.module, flat), store, store, torch.device("cpu"))
params = flat.clone()
Site(0, np.arange(2 * batch_size), resident).train(params, 1)  # warm up
shard = np.arange(2 * batch_size, len(store))
start = time.perf_counter()
Site(0, shard, resident).train(params, 2)
rate = int(store.lengths[shard].sum()) / (time.perf_counter() - start)
batches = token_store.training_batches(store, shard, batch_size, True, 0)
padded = sum(int(store.lengths[batch].max()) * len(batch) for batch in batches)
print(json.dumps({"rate": rate, "padding": 1 - int(store.lengths[shard].sum()) / padded}))
"""
)
TRAINER = (
    _DATA
    + """
from peft import LoraConfig, get_peft_model
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
conversations.write(store_of, tokenizer, texts, length, None)
store = token_store.TokenStore(store_of, tokenizer.pad_token_id)
def row(number):
    part = slice(store.offsets[number], store.offsets[number + 1])
    ids, predicted = np.array(store.tokens[part], np.int64), np.array(store.predicted[part])
    return {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": np.where(predicted, ids, -100).tolist()}
order = np.arange(len(store))
if sys.argv[5] == "sequential":
    from scaling_fl.federated.local_batches import local_batches
    order = np.concatenate([order[: 2 * batch_size], *local_batches(config, store, order[2 * batch_size :], 2, 0)])
module = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
class Clock(transformers.TrainerCallback):
    def on_step_end(self, arguments, state, control, **kwargs):
        times.append(time.perf_counter())
times = []
arguments = transformers.TrainingArguments(
    folder.name + "/out", per_device_train_batch_size=batch_size, num_train_epochs=1, learning_rate=5e-4,
    lr_scheduler_type="constant", max_grad_norm=0.0, use_cpu=True, report_to=[], save_strategy="no",
    logging_strategy="no", disable_tqdm=True, train_sampling_strategy=sys.argv[5])
trainer = transformers.Trainer(
    get_peft_model(module, lora), arguments, train_dataset=[row(number) for number in order],
    callbacks=[Clock()], data_collator=transformers.DataCollatorForSeq2Seq(tokenizer))
trainer.train()
share = (len(times) - 2) / len(times)  # of the steps, after a warm-up of two
print(json.dumps({"rate": share * int(store.lengths.sum()) / (times[-1] - times[1])}))
"""
)
TRAINER_REQUIREMENTS = (
    "transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2", "fsspec", "numpy", "filelock", "pyarrow",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train-path", required=True)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    trainer = measure.peer("trainer-lora", *TRAINER_REQUIREMENTS)
    measure.wait_until_quiet()

    def run(python: str, code: str, sampling: str, **settings: str) -> dict[str, float]:
        found: dict[str, float] = measure.script(
            python, code, options.model, options.train_path, measure.CORES, options.batches, sampling, measure.ROOT,
            BATCH_SIZE, LENGTH, **settings,
        )  # fmt: skip
        return found

    results = measure.in_turn(
        {
            "scaling_fl": lambda: run(sys.executable, OURS, "", **fork_server.LIBRARY_ENVIRONMENT),
            "Trainer, our batches": lambda: run(trainer, TRAINER, "sequential"),
            "Trainer, group_by_length": lambda: run(trainer, TRAINER, "group_by_length"),
            "Trainer, default": lambda: run(trainer, TRAINER, "random"),
        },
        options.repeats,
    )
    speeds = {name: statistics.median(found["rate"] for found in values) for name, values in results.items()}
    mine, padding = speeds["scaling_fl"], results["scaling_fl"][0]["padding"]
    measure.table(
        [
            (f"LoRA on conversations against the Trainer's {name}", f"{mine:,.0f} tokens/s", f"{speeds[peer]:,.0f} tokens/s",
             f"{mine / speeds[peer]:.2f}", bar)
            for name, peer, bar in (
                ("default", "Trainer, default", "≥ 1.5"), ("`group_by_length`", "Trainer, group_by_length", "≥ 1"),
                ("loop over the same batches", "Trainer, our batches", "≥ 1"),
            )
        ]
        + [
            ("… padding, as a share of the tokens computed: the most that batches without padding could gain",
             f"{padding:.1%}", "", "", ""),
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()
