"""Run the real command in its own folder, on models with random weights and synthetic texts."""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure
import numpy as np
import transformers
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

NO_MONGO = dict.fromkeys(("SACRED_USER", "SACRED_PASSWORD", "SACRED_DATABASE", "SACRED_HOST"), "")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = [f"word{number}" for number in range(4000)]
SHAPES: dict[str, Callable[[], Any]] = {
    "BERT-tiny": lambda: transformers.BertConfig(  # 4.4 M parameters (Turc et al. 2019)
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512
    ),
    "MiniLM": lambda: transformers.BertConfig(  # 22.7 M parameters
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "DistilBERT": lambda: transformers.DistilBertConfig(vocab_size=28996),  # 65.8 M parameters
}


def model_folder(folder: Path, shape: str) -> tuple[Path, int]:
    """Write a model of this shape with random weights and a tokenizer for `WORDS`. Returns folder and parameter count."""
    vocabulary = {piece: number for number, piece in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(tokenizer_models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(piece, vocabulary[piece]) for piece in ("[CLS]", "[SEP]")]
    )
    place = folder / shape
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(place)
    model = transformers.AutoModelForSequenceClassification.from_config(SHAPES[shape]())
    model.save_pretrained(place)
    return place, model.num_parameters()


def data(folder: Path, rows: int, test_rows: int, words: int) -> dict[str, Any]:
    """Write training and test files of two classes. Returns the keys of the task."""
    rng, vocabulary = np.random.default_rng(0), np.array(WORDS)
    for name, number in (("train.csv", rows), ("test.csv", test_rows)):
        with open(folder / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([" ".join(rng.choice(vocabulary, words)), "ab"[row % 2]] for row in range(number))
    paths = {"train_path": folder / "train.csv", "test_path": folder / "test.csv"}
    return {"task_name": "csv", "text_column": "text", "label_column": "label", **paths}


def sites(number: int) -> str:
    """The value of `site_ids` for `number` sites on the CPU."""
    return f"[{','.join(['-1'] * number)}]"


class Job:
    """The command, started in a new folder in `parent`. On exit from the context it is interrupted if it still runs."""

    def __init__(self, parent: Path, keys: dict[str, Any], *python: str, **environ: str):
        self.folder = Path(tempfile.mkdtemp(dir=parent))
        self.typed_at = time.time()
        words = [f"{key}={value}" for key, value in ({"checkpoints_dir": None} | keys).items()]
        with open(self.folder / "output", "w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *(python or [str(measure.ROOT / "scripts" / "train_federated.py")]), "with", *words],
                cwd=self.folder,
                env=os.environ | NO_MONGO | {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(parent / "cache")} | environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait()

    def output(self) -> str:
        """The console output so far."""
        return (self.folder / "output").read_text()

    def rounds(self) -> dict[int, dict[str, Any]]:
        """The events of the complete rounds, by round."""
        found = {}
        for path in (self.folder / "runs" / "_events").glob("*.jsonl"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n") and (event := json.loads(line))["event"] == "round":
                    found[event["round"]] = event
        return found

    def wait_for(self, round_: int) -> dict[str, Any]:
        """Wait for a round. Returns its event."""
        while round_ not in (rounds := self.rounds()):
            if self.process.poll() is not None and round_ not in self.rounds():
                sys.exit(f"the command ended before round {round_}:\n{self.output()[-4000:]}")
            time.sleep(0.02)
        return rounds[round_]

    def end(self) -> dict[int, dict[str, Any]]:
        """Wait for exit status 0. Returns the events of all rounds."""
        if self.process.wait() != 0:
            sys.exit(f"the command failed:\n{self.output()[-4000:]}")
        return self.rounds()

    def memory(self) -> int:
        """Bytes of memory of all its processes together."""
        return memory(self.process.pid)


def memory(process: int, itself: bool = True) -> int:
    """Bytes of memory of a process and its descendants; without the process if not `itself`.

    Shared memory counts once (proportional set size).
    """
    total = 0
    for pid in _family(process)[not itself :]:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                total += next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
        except (OSError, StopIteration):  # the process has ended
            continue
    return total


def _family(process: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for pid in found:  # the list grows
        found += children.get(pid, [])
    return found
