"""Sites that train adapters of one language model on a GPU, by the real command: tokens per second, and their memory."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command
import hosting
import numpy as np
import torch
import transformers

BATCH_SIZE, LENGTH, NUM_ROUNDS = 8, 256, 4


def model_folder(folder: Path) -> Path:
    """Write a model of SmolLM2-135M's shape with random weights, and a tokenizer for words."""
    place, _ = command.model_folder(folder, "BERT-tiny")
    tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    tokenizer.eos_token = "[SEP]"
    shape = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "decoder")
    tokenizer.save_pretrained(folder / "decoder")
    return folder / "decoder"


def run(folder: Path, model: Path, device: int, processes: int, steps: int, **keys: Any) -> tuple[float, str]:
    """Tokens per second of `processes` sites on `device`, each with `steps` local steps, and the command's output."""
    rng = np.random.default_rng(0)
    words = np.array(command.WORDS)
    for name, rows in (("train.txt", processes * steps * BATCH_SIZE), ("test.txt", 2)):
        (folder / name).write_text("".join(" ".join(rng.choice(words, LENGTH)) + "\n" for _ in range(rows)))
    job = {
        "task_name": "lm", "train_path": folder / "train.txt", "test_path": folder / "test.txt", "model": model,
        "trainable": "lora", "max_seq_len": LENGTH, "batch_size": BATCH_SIZE, "num_local_steps": steps, "learning_rate": 5e-4,
        "site_ids": str([device] * processes).replace(" ", ""), "num_rounds": NUM_ROUNDS, "eval_every": NUM_ROUNDS,
    }  # fmt: skip
    with command.Job(folder, job | keys) as started:
        rounds = started.end()
    speeds = [rounds[number]["metrics"]["tokens_per_second"] for number in range(2, NUM_ROUNDS + 1)]
    return statistics.median(speeds), started.output()


def rows(number: int, folder: Path, model: Path, steps: int = 20) -> Iterator[tuple[str, str, str, str, str]]:
    """The rows of `number` sites that share the GPU."""
    free, start = torch.cuda.mem_get_info()[0], time.time()
    with hosting.Memory(lambda: free - torch.cuda.mem_get_info()[0]) as memory:
        speed, output = run(folder, model, 0, number, steps)
    used = memory.highest(start, time.time())
    how = "a copy of the base each" if "its own copy of the frozen weights" in output else "one base"
    yield (
        f"{number} LoRA sites of SmolLM2-135M's shape on the GPU, {how}: training",
        f"{speed:,.0f} tokens/s",
        "",
        "",
        "",
    )
    yield "… memory of the GPU", f"{used / 2**30:.1f} GiB", "", "", ""
