"""The `show_task` command: rows, labels, token lengths, duplicates and examples of a task, without training."""

import dataclasses
import functools
from typing import Any

import numpy as np
import numpy.typing as npt

from scaling_fl.config.schema import Config
from scaling_fl.data import conversations, duplicates, encoding
from scaling_fl.data.examples import Split, Task
from scaling_fl.data.subsets import stratified
from scaling_fl.data.task_loader import load_task, reads_over_network
from scaling_fl.models import loading
from scaling_fl.progress import Send, waiting
from scaling_fl.text import num_columns, one_line, padded, short_names

_MAX_LABELS = 30
_EXAMPLES = 5
_EXAMPLE_WIDTH = 150  # characters
_LABEL_WIDTH = 40
_WIDTH = 200  # characters of a line, unless the terminal is narrower


def show(send: Send, config: Config, width: int) -> None:
    """Send the preview line by line, for `width` characters. Raises `UserError` on bad input, like a run."""
    loading.silence_library()

    def report(what: str, done: float, total: float, unit: str) -> None:
        send({"event": "working", "what": what, "done": done, "total": total, "unit": unit})

    with waiting(send, reads_over_network(config)):
        task = load_task(config, report)
    with waiting(send):
        tokenizer = loading.load_tokenizer(config.model, task.train.texts, config.max_seq_len)
    if task.conversations:
        conversations.check_tokenizer(config.model, tokenizer, config.prompt_template)
        whole = functools.partial(conversations.rendered, tokenizer, config.prompt_template)
        train_split, test_split = (dataclasses.replace(s, texts=whole(s.texts)) for s in (task.train, task.test))
        task = dataclasses.replace(task, train=train_split, test=test_split)
    train, test = (
        _lengths(tokenizer, split, functools.partial(report, f"tokenising {name} texts"))
        for name, split in (("training", task.train), ("test", task.test))
    )
    for line in describe(config, task, train, test, width):
        send({"event": "said", "text": line})


def describe(
    config: Config, task: Task, train: npt.NDArray[np.int64], test: npt.NDArray[np.int64], max_width: int = _WIDTH
) -> list[str]:
    """Return the preview's lines. `train` (N,) and `test` (M,) are the untruncated lengths of texts, or pairs, in tokens.

    The rows of its tables have at most `max_width` (≥ 60) characters.
    """
    lines = [f"task {config.task_name}: {len(task.train):,} training and {len(task.test):,} test rows"]
    lines += [f"note: {note}" for note in task.notes]

    names = short_names(task.label_names, min(_LABEL_WIDTH, max_width - 51))
    width = max(map(num_columns, ("label", *names[:_MAX_LABELS])))
    in_train, in_test = (
        np.bincount(split.labels, minlength=len(task.label_names)) for split in (task.train, task.test)
    )
    if names:
        lines += ["", f"       {'label':<{width}}  {'training rows':>18}  {'test rows':>18}"]
    for number, name in enumerate(names[:_MAX_LABELS]):
        shares = (f"{count[number]:>10,} {count[number] / count.sum():>7.1%}" for count in (in_train, in_test))
        lines.append(f"{number:>5}  {padded(name, width)}  {'  '.join(shares)}")
    if len(task.label_names) > _MAX_LABELS:
        lines.append(f"       … and {len(task.label_names) - _MAX_LABELS:,} more labels")

    lines += [
        "",
        f"tokens of model={config.model}, special tokens included; "
        + (
            "documents are packed into blocks"
            if task.predicts_tokens and not task.conversations
            else "texts longer than max_seq_len are truncated"
        ),
    ]
    lines.append(
        f"{'':<8}{'shortest':>9}{'median':>7}{'90 %':>7}{'99 %':>7}{'longest':>8}  "
        + (f"over max_seq_len={config.max_seq_len}" if max_width >= 80 else "truncated")
    )
    for name, lengths in (("training", train), ("test", test)):
        shortest, median, p90, p99, longest = np.quantile(lengths, (0, 0.5, 0.9, 0.99, 1), method="inverted_cdf")
        cut = int((lengths > config.max_seq_len).sum())
        lines.append(
            f"{name:<8}{shortest:>9,}{median:>7,}{p90:>7,}{p99:>7,}{longest:>8,}  {cut:,}"
            + (f" ({cut / len(lengths):.1%})" if max_width >= 80 else "")
        )

    found = duplicates.count(task.train, task.test)
    lines += [
        "",
        f"duplicates within a split: {found.in_train:,} training and {found.in_test:,} test rows "
        "repeat an earlier text",
        f"duplicates between splits: {found.shared:,} test rows repeat a training text, "
        f"{found.relabelled:,} of them with another label",
        "",
        "training examples",
    ]
    for index in stratified(task.train.labels, _EXAMPLES, config.data_seed):
        content = [task.train.texts[index], *([] if task.train.pairs is None else [task.train.pairs[index]])]
        name = f"{names[task.train.labels[index]]}: " if names else ""
        room = min(_EXAMPLE_WIDTH, max_width - num_columns(name) - 2)
        lines.append(f"{name}{one_line(' ‖ '.join(content), room)}")
    return lines


def _lengths(tokenizer: Any, split: Split, report: Any) -> npt.NDArray[np.int64]:
    chunks = encoding.encode(tokenizer, split.texts, split.pairs, None, report=report)
    return np.array([len(ids) for chunk in chunks for ids in chunk["input_ids"]], np.int64)
