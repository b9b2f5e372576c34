"""The `evaluate` command: a trained model's metrics on a test set, its confusion matrix, and its predictions as CSV."""

import dataclasses
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from scaling_fl.commands import csv_file, evaluate_documents, trained_model
from scaling_fl.commands.trained_model import TrainedModel
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.examples import Predictions, Split, Task
from scaling_fl.data.task_loader import load_test, reads_over_network
from scaling_fl.errors import UserError
from scaling_fl.federated import metrics
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.federated.predictions import Collector, merged
from scaling_fl.models import loading, probe
from scaling_fl.progress import Report, Send, waiting
from scaling_fl.text import blocks, num_columns, one_line, padded, short_names

_MAX_LABELS = 30  # in the table
_MAX_MATRIX = 12  # labels in the matrix; if there are more, the most frequent confusions are listed instead
_MAX_CONFUSIONS = 10
_LABEL_WIDTH = 24
_WIDTH = 120  # characters of a line, unless the terminal is narrower


def show(send: Send, config: Config, width: int) -> None:
    """Send the results line by line, for `width` characters. Raises `UserError` on bad input; then nothing is written."""
    loading.silence_library()

    def report(what: str, done: float, total: float, unit: str) -> None:
        send({"event": "working", "what": what, "done": done, "total": total, "unit": unit})

    csv_file.check_new(config.csv_path)
    if named := config.checkpoint or (config.job_name and f"the newest checkpoint of job {config.job_name}"):
        send({"event": "said", "text": f"loading {named}"})
    trained = trained_model.load(send, config, report)
    config = trained.config
    with waiting(send, reads_over_network(config)):
        task = load_test(config, report)
    if task.predicts_tokens:
        for line in evaluate_documents.lines(trained, task, report):
            send({"event": "said", "text": line})
        return
    split, notes = _with_labels_of(trained, task)
    batches, predictions = measure(trained, split, report)
    confusion = np.sum([batch.confusion for batch in batches], axis=0)
    source = config.test_path or config.dataset or (config.train_path if config.test_fraction else None)
    title = f"task {config.task_name}{f', {source}' if source else ''}: {len(split):,} test rows"
    lines = [trained.title, f"{title}; max_seq_len={config.max_seq_len}", *(f"note: {note}" for note in notes), ""]
    for line in lines + describe(metrics.validation(batches), confusion, trained.label_names, width):
        send({"event": "said", "text": line})
    if config.csv_path is not None:
        header = ["row", "label", "predicted", "probability", "text", *(["text_pair"] if split.pairs else [])]
        csv_file.write(config.csv_path, header, _rows(split, predictions, trained.label_names))
        send({"event": "said", "text": f"predictions  {config.csv_path}"})


def measure(trained: TrainedModel, split: Split, report: Report) -> tuple[list[metrics.BatchMetrics], Predictions]:
    """Evaluate as in a run. Also returns the prediction of each example."""
    config, module, tokenizer = trained.config, trained.loaded.module, trained.loaded.tokenizer
    collector, done = Collector(), 0

    def keep(rows: npt.NDArray[np.int64], logits: torch.Tensor) -> None:
        nonlocal done
        collector.add(rows, logits)
        done += len(rows)
        report("evaluating", done, len(split), "texts")

    with tempfile.TemporaryDirectory() as folder:
        token_types = split.pairs is not None and loading.takes_token_types(module)
        token_store.write(
            Path(folder), tokenizer, split.texts, split.labels, config.max_seq_len, split.pairs, token_types,
            report=lambda done, total, unit: report("tokenising", done, total, unit),
        )  # fmt: skip
        paired = split.pairs is not None
        padding, _ = probe.prepare_padding(config.model, trained.loaded, split.texts, paired, config.max_seq_len, [])
        store = token_store.TokenStore(Path(folder), tokenizer.pad_token_id, padding.left, padding.min_length)
        resident = trained_model.resident(trained, store)
        batches = evaluate(resident, resident.model.flat.clone(), 0, 1, on_logits=keep)
    return batches, merged([collector.collected()])


def describe(
    results: dict[str, float], confusion: npt.NDArray[np.int64], label_names: Sequence[str], max_width: int = _WIDTH
) -> list[str]:
    """Metrics, figures per label, and the confusion matrix (C, C), as lines. Rows have at most `max_width` (≥ 60) characters."""
    hits, rows, guesses = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    count = len(f"{max(rows.max(), guesses.max()):,}")
    widths = [max(5, count), max(9, count), 9, 6, 5]
    names = short_names(label_names, max(4, min(_LABEL_WIDTH, max_width - sum(widths) - 2 * len(widths) - 8)))
    starts = [f"{label:>2}  {name}" for label, name in enumerate(names[:_MAX_LABELS])]
    width = max(map(num_columns, ("    label", *starts)))

    def row(start: str, cells: Iterable[str], widths: Iterable[int]) -> str:
        return padded(start, width) + "".join(f"  {cell:>{room}}" for cell, room in zip(cells, widths, strict=True))

    lines = [
        ", ".join(
            f"{title} {results[f'validation.{key}']:.4f}"
            for title, key in (("loss", "loss"), ("accuracy", "accuracy"), ("macro F1", "macro_f1"))
        ),
        "",
        row("    label", ("rows", "predicted", "precision", "recall", "F1"), widths),
    ]
    for label, start in enumerate(starts):
        shares = (_share(hits[label], guesses[label]), _share(hits[label], rows[label]))
        f1 = _share(2 * hits[label], rows[label] + guesses[label])
        lines.append(row(start, (f"{rows[label]:,}", f"{guesses[label]:,}", *shares, f1), widths))
    if len(names) > _MAX_LABELS:
        lines.append(f"    … and {len(names) - _MAX_LABELS:,} more labels")
    lines.append("")
    if len(names) <= _MAX_MATRIX:
        lines.append("confusion matrix: a row for each true label, a column for each predicted one")
        cells = [max(5, len(f"{confusion.max():,}"))] * len(names)
        for part in blocks([2 + cell for cell in cells], max_width - width):
            lines += [""] * (part.start > 0)
            lines.append(row("", map(str, range(len(names))[part]), cells[part]))
            for start, counts in zip(starts, confusion, strict=True):
                lines.append(row(start, (f"{number:,}" for number in counts[part]), cells[part]))
        return lines
    wrong = confusion - np.diag(hits)
    lines.append("most frequent confusions: rows, true label → predicted label")
    for place in np.argsort(-wrong, axis=None, kind="stable")[:_MAX_CONFUSIONS]:
        true, guess = divmod(int(place), len(names))
        if wrong[true, guess]:
            lines.append(f"{wrong[true, guess]:>7,}  {names[true]} → {names[guess]}")
    return lines


def _share(part: int, whole: int) -> str:
    """The share, or a dash if it is undefined: a label that never occurs, or is never predicted."""
    return f"{part / whole:.3f}" if whole else "–"


def _rows(split: Split, predictions: Predictions, names: Sequence[str]) -> Iterator[list[object]]:
    for row, guess, probability in zip(*predictions, strict=True):
        label = split.labels[row]
        pair = [] if split.pairs is None else [split.pairs[row]]
        yield [row + 1, names[label], names[guess], f"{probability:.6f}", split.texts[row], *pair]


def _with_labels_of(trained: TrainedModel, task: Task) -> tuple[Split, list[str]]:
    """The test examples with the model's label numbers, and notes. Raises `UserError` if the model lacks a label."""
    number_of = {name: number for number, name in enumerate(trained.label_names)}
    notes = list(task.notes)
    if all(re.fullmatch(r"LABEL_\d+", name) for name in number_of):  # a model that was saved without names
        if len(task.label_names) != len(number_of):
            raise UserError(
                f"checkpoint={trained.config.checkpoint}: its {len(number_of)} labels have no names, and the test rows have "
                f"{len(task.label_names)} labels; name them in id2label of its config.json"
            )
        number_of = {name: number for number, name in enumerate(task.label_names)}
        notes.append(
            f"the model's labels have no names; they are taken to be {', '.join(task.label_names)}, in this order"
        )
    used = [task.label_names[label] for label in np.unique(task.test.labels)]
    if unknown := [name for name in used if name not in number_of]:
        raise UserError(
            f"test rows have the label {unknown[0]!r}, but the model's labels are "
            f"{one_line(', '.join(trained.label_names), 300)}; correct the labels, or use a model that was trained on them"
        )
    numbers = np.array([number_of.get(name, -1) for name in task.label_names], np.int64)
    return dataclasses.replace(task.test, labels=numbers[task.test.labels]), notes
