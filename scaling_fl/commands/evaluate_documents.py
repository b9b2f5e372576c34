"""The `evaluate` command for language models: loss and perplexity, per token and per byte."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from scaling_fl.commands import trained_model
from scaling_fl.commands.trained_model import TrainedModel
from scaling_fl.data import choices as data
from scaling_fl.data import conversations, packing, token_store
from scaling_fl.data.examples import Task
from scaling_fl.errors import UserError
from scaling_fl.federated import choices, metrics
from scaling_fl.federated.evaluation import evaluate
from scaling_fl.progress import Report

_CHOICES = (
    ("right choices", "validation.choice_accuracy", "choices, by log-probability"),
    ("… per token", "validation.choice_accuracy_per_token", "choices, by its mean over tokens"),
)


def lines(trained: TrainedModel, task: Task, report: Report) -> list[str]:
    """Evaluate the test documents as in a run. Raises `UserError` if the model is a classifier."""
    config, tokenizer = trained.config, trained.loaded.tokenizer
    if trained.label_names:
        raise UserError(
            f"task_name={config.task_name}: the model classifies texts; name a language model, or the task that it was "
            "trained on"
        )
    if config.csv_path is not None:
        raise UserError(f"csv_path={config.csv_path}: a language model has no predictions of rows; leave it out")
    split = task.test
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenising = functools.partial(report, "tokenising")
        if task.conversations:
            conversations.check_tokenizer(config.model, tokenizer, config.prompt_template)
            how = config.max_seq_len, config.prompt_template
            conversations.write(folder / "test", tokenizer, split.texts, *how, tokenising)
            data.write(folder / "choices", tokenizer, split, *how)
        else:
            token_store.write(
                folder / "documents", tokenizer, split.texts, split.labels, None, end_token=tokenizer.eos_token_id,
                report=tokenising,
            )  # fmt: skip
            documents = token_store.TokenStore(folder / "documents", tokenizer.pad_token_id)
            everything = [np.arange(len(documents))]
            packing.pack(documents, everything, config.max_seq_len, config.data_seed, folder / "test", "test")
        store = token_store.TokenStore(folder / "test", tokenizer.pad_token_id)
        resident = trained_model.resident(trained, store)
        batches = evaluate(resident, resident.model.flat.clone(), 0, 1)
        num_bytes = int(store.num_bytes.sum())
        results = metrics.validation(batches)
        results |= metrics.by_bytes(results["validation.loss"], int(store.lengths.sum()), num_bytes)
        if (given := data.read(folder / "choices", tokenizer.pad_token_id)) is not None:
            part = choices.scored(resident, resident.model.flat.clone(), 0, 1, given)
            results |= choices.accuracies([part], given)
    loss, tokens = results["validation.loss"], results["validation.tokens"]
    what = "conversations" if task.conversations else "documents, in blocks"
    bits = results.get("validation.bits_per_byte", 0.0)
    by_bytes = [f"bits per byte     {bits:.4f}", f"byte perplexity   {2**bits:.4f}"]
    return [
        trained.title,
        f"task {config.task_name}: {len(split):,} test {what} of up to max_seq_len={config.max_seq_len} tokens",
        "",
        f"loss              {loss:.4f} per token ({tokens:,.0f} tokens are predicted)",
        f"perplexity        {results['validation.perplexity']:.4f}",
        *(by_bytes if num_bytes else ()),
        f"right tokens      {results['validation.accuracy']:.4f}",
        *(
            f"{title:18}{results[name]:.4f} of the responses chosen among each row's {how}"
            for title, name, how in _CHOICES
            if name in results
        ),
    ]
