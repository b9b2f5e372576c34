"""What workers train and test on, in the work folder: token stores, and which of their rows belong to whom."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scaling_fl.config.schema import Config
from scaling_fl.data import choices, conversations, token_cache, token_store
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.packing import pack
from scaling_fl.data.subsets import Indices
from scaling_fl.errors import UserError
from scaling_fl.federated.worker_sites import write_shards
from scaling_fl.models.loading import LoadedModel
from scaling_fl.progress import Progress, Report, Send


class Rows(NamedTuple):
    """Positions in the training store, or, of `tests` with `site_test=partitioned`, in the test store."""

    held_back: Indices
    shards: list[Indices]  # of each site
    tests: list[Indices]  # of each site; none without `site_test`


def write(
    send: Send,
    report: Report,
    config: Config,
    work: Path,
    task: Task,
    loaded: LoadedModel,
    tokenizer_files: list[Path],
    token_types: bool,
    rows: Rows,
) -> tuple[Rows, list[str]]:
    """Tokenise, or take from the cache. Returns rows of the stores, and notes.

    The rows are the texts or the conversations; of documents, blocks. Raises
    `UserError` if the texts can't be used.
    """
    notes, tokenizer = list[str](), loaded.tokenizer
    packed = task.predicts_tokens and not task.conversations
    end_token = tokenizer.eos_token_id if packed else None
    max_seq_len = None if packed else config.max_seq_len
    how = f" {end_token}" if packed else ""
    if task.conversations:
        how = f" {tokenizer.eos_token!r} {config.prompt_template!r} {tokenizer.chat_template!r}"
    folder = work / "documents" if packed else work
    folder.mkdir(exist_ok=True)

    def store(
        target: Path, split: Split, what: str, variant: str, build: Callable[[Path, Progress], None]
    ) -> list[str]:
        key = token_cache.key(split.digest, tokenizer_files, max_seq_len, token_types, how + variant)

        def said(target: Path) -> None:
            send({"event": "said", "text": what})
            build(target, functools.partial(report, what))

        return token_cache.link(target, key, said, report)

    form = config.max_seq_len, config.prompt_template
    for name, split in (("train", task.train), ("test", task.test)):
        what = f"tokenising {len(split):,} {'training' if name == 'train' else name} texts"

        def build(target: Path, progress: Progress, split: Split = split) -> None:
            if task.conversations:
                conversations.write(target, tokenizer, split.texts, *form, progress)
                return
            token_store.write(
                target, tokenizer, split.texts, split.labels, max_seq_len, split.pairs,
                token_types=token_types, end_token=end_token, report=progress,
            )  # fmt: skip

        try:
            notes += store(folder / name, split, what, "", build)
        except UserError as error:
            raise UserError(f"{'training' if name == 'train' else name} data, {error}") from error
    if task.test.choices is not None:
        what = f"tokenising the choices of {len(task.test):,} test texts"

        def build_choices(target: Path, progress: Progress) -> None:
            choices.write(target, tokenizer, task.test, *form, progress)

        notes += store(work / "choices", task.test, what, " choices", build_choices)
    if packed:
        rows = _packed(config, folder, work, tokenizer.pad_token_id, rows)
    write_shards(work, rows.shards)
    np.save(work / "held_back.npy", rows.held_back)
    if rows.tests:
        write_shards(work / "site_tests", rows.tests)
    return rows, notes


def num_truncated(work: Path, trained: Indices, max_seq_len: int) -> int:
    """The number of texts that reach `max_seq_len`: all of them are truncated, except the few that fit exactly."""
    lengths = token_store.TokenStore(work / "train", pad_token_id=0).lengths  # without padding
    return int((lengths[trained] >= max_seq_len).sum())


def check_tokenizer(model: str, loaded: LoadedModel, task: Task, template: str | None) -> None:
    """Raises `UserError` if the model's tokenizer can't tell documents apart, or has no form for conversations."""
    if loaded.tokenizer.eos_token_id is None:
        raise UserError(
            f"model={model}: its tokenizer has no end-of-sequence token, which ends each document; use another model"
        )
    if task.conversations:
        conversations.check_tokenizer(model, loaded.tokenizer, template)


def _packed(config: Config, folder: Path, work: Path, pad_token_id: int, rows: Rows) -> Rows:
    """Pack each site's documents into blocks, and the held-back and the test documents."""
    train, test = (token_store.TokenStore(folder / name, pad_token_id) for name in ("train", "test"))
    of_train = [rows.held_back, *rows.shards, *(rows.tests if config.site_test == "held_back" else ())]
    held_back, *others = pack(train, of_train, config.max_seq_len, config.data_seed, work / "train", "train")
    of_test = rows.tests if config.site_test == "partitioned" else [np.arange(len(test))]
    blocks = pack(test, of_test, config.max_seq_len, config.data_seed, work / "test", "test")
    shards, tests = others[: len(rows.shards)], others[len(rows.shards) :]
    return Rows(held_back, shards, blocks if config.site_test == "partitioned" else tests)
