"""Small models, data sets and workers for the tests."""

import csv
import dataclasses
import multiprocessing
import os
import select
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.distributed.collectives import Collectives
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.federated import algorithms, cohort, server
from scaling_fl.federated.resident import Resident
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.federated.worker_sites import Shards, WorkerSites, write_shards
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.models.tiny import tiny_tokenizer
from scaling_fl.runtime import launcher
from scaling_fl.state_file import read_state, write_state

WORDS = {
    0: ["river", "stone", "forest", "mountain", "meadow"],
    1: ["engine", "wheel", "piston", "gearbox", "brake"],
    2: ["violin", "cello", "flute", "trumpet", "drum"],
}
TINY_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def texts_and_labels(count: int, seed: int = 0, num_labels: int = 3) -> tuple[list[str], np.ndarray]:
    """Texts of 2 to 12 words, most of them typical of the label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, num_labels, count)
    all_words = [word for words in WORDS.values() for word in words]
    texts = []
    for label in labels:
        length = rng.integers(2, 13)
        on_topic = rng.random(length) < 0.7
        texts.append(" ".join(rng.choice(WORDS[int(label)] if hit else all_words) for hit in on_topic))
    return texts, labels.astype(np.int64)


def write_csv(path: Path, count: int, seed: int = 0) -> Path:
    """Write a file for task_name=csv, with the columns body and topic."""
    texts, labels = texts_and_labels(count, seed)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["topic", "body"])
        writer.writerows(zip((f"class {label}" for label in labels), texts, strict=True))
    return path


def tokenizer() -> Any:
    return tiny_tokenizer([" ".join(words) for words in WORDS.values()])


def bert(dropout: float = 0.1, seed: int = 1, num_labels: int = 3, positions: int = 64) -> Any:
    """A BERT with a few thousand parameters, whose large initial weights make differences show."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer()),
        max_position_embeddings=positions,
        num_labels=num_labels,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **TINY_SIZES,
    )
    return transformers.AutoModelForSequenceClassification.from_config(config)


def decoder(seed: int = 1) -> Any:
    """A Llama with a few thousand parameters, whose head is its embedding table."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer()), max_position_embeddings=64, tie_word_embeddings=True, initializer_range=0.2,
        pad_token_id=0, **TINY_SIZES,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def write_documents(folder: Path, count: int, seed: int = 5) -> token_store.TokenStore:
    """A store of documents, each with its end token."""
    words, ending = tokenizer(), tokenizer().eos_token_id
    token_store.write(folder, words, *texts_and_labels(count, seed), None, end_token=ending)
    return token_store.TokenStore(folder, words.pad_token_id)


def flat_model() -> FlatModel:
    module = bert()
    return FlatModel(module, torch.zeros(Layout(module).size))


def pretrained(folder: Path, kind: str = "bert") -> Path:
    """A local model folder with random weights and no classification head, like a hub model."""
    torch.manual_seed(3)
    vocabulary = {"vocab_size": len(tokenizer()), "max_position_embeddings": 64}
    config = {
        "bert": lambda: transformers.BertConfig(**vocabulary, **TINY_SIZES),
        "distilbert": lambda: transformers.DistilBertConfig(**vocabulary, dim=16, n_layers=2, n_heads=2, hidden_dim=32),
        "albert": lambda: transformers.AlbertConfig(
            **vocabulary, **TINY_SIZES | {"num_hidden_layers": 3}, embedding_size=8
        ),
        "roberta": lambda: transformers.RobertaConfig(**vocabulary, **TINY_SIZES, pad_token_id=0, type_vocab_size=1),
        "roformer": lambda: transformers.RoFormerConfig(**vocabulary, **TINY_SIZES),
        "llama": lambda: transformers.LlamaConfig(**vocabulary, **TINY_SIZES, pad_token_id=0),
    }[kind]()
    if kind == "llama":
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return folder
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def resident(
    folder: Path, config: Config, module: Any, flat: torch.Tensor | None = None, count: int = 40, device: str = "cpu"
) -> Resident:
    """A worker's model and stores: `count` training and 23 test examples."""
    for name, number, seed in (("train", count, 5), ("test", 23, 6)):
        if not (folder / name).exists():
            token_store.write(folder / name, tokenizer(), *texts_and_labels(number, seed), config.max_seq_len)
    if flat is None:
        flat = torch.zeros(row_size(config, module), device=device)
    return Resident(
        config=config,
        model=FlatModel(module.to(device), flat),
        train=token_store.TokenStore(folder / "train", pad_token_id=0),
        test=token_store.TokenStore(folder / "test", pad_token_id=0),
        device=torch.device(device),
    )


def row_size(config: Config, module: Any) -> int:
    """Of the parameters and what travels beside them."""
    layout = Layout(module)
    return layout.size + algorithms.extra_size(config, layout)


def worker(
    folder: Path,
    config: Config,
    module: Any,
    shards: Sequence[np.ndarray],
    rank: int = 0,
    num_workers: int = 1,
    memory: SharedMemory | None = None,
) -> tuple[WorkerSites, Collectives, ServerState]:
    """A worker and its share of the sites; `module` holds the initial parameters."""
    initial_moments = server.optimiser(config).initial_moments
    collectives = Collectives(
        rank, ["cpu"] * num_workers, row_size(config, module), memory or SharedMemory(), f"file://{folder}/rendezvous", len(initial_moments),
        exact=config.exact_sum, single_site=cohort.single_site_per_worker(config, len(shards), num_workers),
    )  # fmt: skip
    worker_resident = resident(folder, config, module, collectives.model_buffer(torch.device("cpu")))
    if rank == 0:
        write_shards(folder, shards)
        collectives.state[0].copy_(worker_resident.model.row)
        collectives.state[1:].copy_(torch.tensor(initial_moments)[:, None])
        if config.keeps_site_state:
            write_state(folder / "start", {}, {})
    collectives.barrier()
    if config.keeps_site_state:
        store = SiteStateStore(folder / "kept", folder / "start")
        worker_resident = dataclasses.replace(worker_resident, store=store)
    worker_sites = WorkerSites(worker_resident, Shards(folder), rank, num_workers)
    layout, moments = worker_resident.model.layout, collectives.state[1:]
    state = ServerState(collectives.state[0], layout.trained, round=0, moments=moments, size=layout.size)
    return worker_sites, collectives, state


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the tensors and the header of a state file into memory."""
    tensors, header = read_state(path)
    return dict(tensors), header


def run_distributed(function: Callable[..., Any], num_workers: int, folder: Path, *args: Any) -> list[Any]:
    """Run `function(rank, num_workers, memory, folder, *args)` in worker processes; return the results by rank."""
    memory = SharedMemory()
    (folder / "rendezvous").unlink(missing_ok=True)  # torch leaves the file behind if a process ends early
    results: dict[int, Any] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "result":
            results[event["rank"]] = event["value"]
        else:
            print(event)

    target = f"{function.__module__}:{function.__name__}"
    jobs = [(target, rank, num_workers, memory, folder, *args) for rank in range(num_workers)]
    names = [f"worker {rank}" for rank in range(num_workers)]
    try:
        launcher.run_children("tests.builders:_call", jobs, names, str(folder / "none"), keep)
    finally:
        memory.close()
    assert multiprocessing.active_children() == []
    return [results[rank] for rank in range(num_workers)]


def wait_for_end(pids: Sequence[int], seconds: float = 240) -> None:
    """Wait for processes, which need not be children, to end; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ended = select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]
        os.close(pidfd)
        assert ended, f"process {pid} is still running"


def _call(send: Callable[[dict[str, Any]], None], target: str, rank: int, *args: Any) -> None:
    import importlib

    torch.set_num_threads(1)
    module, _, name = target.partition(":")
    send({"event": "result", "rank": rank, "value": getattr(importlib.import_module(module), name)(rank, *args)})


def two_sites(folder: Path) -> list[str]:
    """Command-line arguments for job j: two sites with 30 texts each and a tiny model, all files in `folder`."""
    train, test = write_csv(folder / "train.csv", 60), write_csv(folder / "test.csv", 9, 1)
    return [
        "with", "site_ids=[-1,-1]", "task_name=csv", f"train_path={train}", f"test_path={test}", "text_column=body",
        "label_column=topic", f"model={pretrained(folder / 'model')}", "max_seq_len=16", "batch_size=8",
        "threads_per_site=1", "job_name=j",
    ]  # fmt: skip
