#!/usr/bin/env python
"""Seconds, memory and bytes on disk to tokenise a data set of Yelp's size, and to reopen the cached tokens.

    ./run-local.sh benchmarks/token_store.py --model models/all-MiniLM-L6-v2

The texts are the 650,000 synthetic reviews of benchmarks/reading.py. The length limit is 128 tokens. The peer is the `map` of
Hugging Face's datasets with the same tokenizer, in batches and two processes; it reads the file before the time counts.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import measure
import reading

JOB = """
import json, os, resource, sys, time
from pathlib import Path
from scaling_fl.config.schema import Config
from scaling_fl.data import token_cache, token_store
from scaling_fl.data.task_loader import load_task
from scaling_fl.models.loading import load_tokenizer, silence_library
from scaling_fl.progress import unreported
path, test_path, model, folder, cache = sys.argv[1:]
os.environ["XDG_CACHE_HOME"] = cache
silence_library()
config = Config(task_name="yelp", train_path=path, test_path=test_path, model=model)
split = load_task(config).train
tokenizer = load_tokenizer(model, [], config.max_seq_len)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
files = [Path(file) for file in tokenizer.save_pretrained(folder)]
key = token_cache.key(split.digest, files, config.max_seq_len, False)
def build(place):
    token_store.write(place, tokenizer, split.texts, split.labels, config.max_seq_len)
token_cache.link(Path(folder) / "store", key, build, unreported)
seconds = time.perf_counter() - start
store = token_store.TokenStore(Path(folder) / "store", tokenizer.pad_token_id)
size = sum(file.stat().st_size for file in (Path(folder) / "store").iterdir())
memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps([seconds, memory, size, len(store.tokens), str(store.tokens.dtype)]))
"""

MAP = """
import json, os, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets, transformers
datasets.disable_progress_bars()
path, model, folder = sys.argv[1:]
columns = ["stars", "text"]
data = datasets.load_dataset("csv", data_files=path, cache_dir=folder, column_names=columns)["train"]
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
def encode(batch):
    return tokenizer(batch["text"], truncation=True, max_length=128, return_attention_mask=False, return_token_type_ids=False)
start = time.perf_counter()
done = data.map(encode, batched=True, num_proc=2, remove_columns=["text"])
seconds = time.perf_counter() - start
print(json.dumps([seconds, len(done)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=650_000)
    options = parser.parse_args()
    peer = measure.peer("datasets", "datasets==5.2.0", "transformers==5.23.0", "numpy")
    measure.wait_until_quiet()
    with tempfile.TemporaryDirectory() as folder:
        train, test = Path(folder) / "train.csv", Path(folder) / "test.csv"
        reading.write(train, options.rows, 0)
        reading.write(test, 1000, 1)
        print(f"{options.rows:,} texts, {train.stat().st_size / 1e6:,.0f} MB")
        rows = []
        for name in ("first job", "next job"):
            work = Path(folder) / name
            work.mkdir()
            seconds, memory, size, count, dtype = measure.script(
                sys.executable, JOB, train, test, options.model, work, Path(folder) / "cache"
            )
            print(f"{name}: {count:,} tokens of type {dtype}", flush=True)
            what = f"{options.rows:,} reviews tokenised, {name}"
            found = f"{seconds:.1f} s, {memory / 1e6:,.0f} MB above the texts, {size / 1e6:,.0f} MB on disk"
            if name == "next job":
                rows.append((what, found, "", "", ""))
                continue
            theirs, count = measure.script(peer, MAP, train, options.model, Path(folder) / "peer")
            print(f"datasets, map in two processes: {theirs:.1f} s", flush=True)
            assert count == options.rows
            rows.append((what, found, "", "", ""))
            claim = "… against datasets' `map` in two processes"
            rows.append((claim, f"{seconds:.1f} s", f"{theirs:.1f} s", f"{seconds / theirs:.2f}", "≤ 0.9"))
        measure.table(rows)


if __name__ == "__main__":
    main()
