"""Every sequence classifier of the library: train, resume, export, and compare with a pipeline and a plain loop."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.data.task_loader import load_task
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime import preparation, worker
from scaling_fl.state_file import read_state
from tests import builders
from tests.models import architectures

USUAL = ("albert", "bart", "canine", "fnet", "gpt2", "t5", "xlnet")
NOT_IN_BF16 = {"deberta", "xmod"}
CASES = [
    pytest.param(
        kind, paired, precision,
        marks=() if kind in USUAL and not paired and precision == "fp32" else pytest.mark.thorough,
    )
    for kind in architectures.ALL
    if kind not in architectures.EXCLUDED
    for paired in (False, True)
    for precision in ("fp32", "bf16")
]  # fmt: skip
# Relative, of losses and of probabilities: bf16 has 8 significant bits, and the texts of a batch change its rounding.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
LENGTH = 12


def test_the_list_is_complete() -> None:
    assert set(USUAL) <= set(architectures.ALL) - architectures.EXCLUDED.keys()
    assert architectures.EXCLUDED.keys() <= set(architectures.ALL)


def prepare(config: Config, folder: Path) -> Plan:
    events: list[dict[str, Any]] = []
    folder.mkdir()
    preparation.prepare(Mock(side_effect=events.append), config, str(folder))
    plan: Plan = events[-1]["plan"]
    return plan


def train(plan: Plan) -> dict[str, float]:
    """Train in this process; return the last round's metrics."""
    events: list[dict[str, Any]] = []
    memory = SharedMemory()
    worker.work(Mock(side_effect=events.append), plan, 0, memory)
    memory.close()
    metrics: dict[str, float] = [event["metrics"] for event in events if event["event"] == "round"][-1]
    return metrics


@pytest.mark.parametrize(("kind", "paired", "precision"), CASES)
def test_an_architecture_trains_resumes_and_is_exported(
    tmp_path: Path, kind: str, paired: bool, precision: str
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    architectures.build(kind).save_pretrained(base)
    builders.tokenizer().save_pretrained(base)
    files = {}
    for name, count in (("train", 13), ("test", 7)):
        texts, _ = builders.texts_and_labels(count - 1, seed=count)
        rows = ["one,two,topic", ",,class 0"]  # the shortest text; the longest exceed LENGTH
        rows += [f"{text},{texts[-i]},class {i % 3}" for i, text in enumerate(texts)]
        files[name] = tmp_path / f"{name}.csv"
        files[name].write_text("\n".join(rows))
    config = Config(
        site_ids=(-1,), num_rounds=2, task_name="csv", train_path=str(files["train"]), test_path=str(files["test"]),
        text_column="one", text_pair_column="two" if paired else None, label_column="topic", model=str(base),
        max_seq_len=LENGTH, batch_size=4, job_name="j", threads_per_site=1, checkpoints_dir=str(out),
        learning_rate=1e-3, keep_checkpoints=0, precision=precision,
    )  # fmt: skip
    if precision == "bf16" and kind in NOT_IN_BF16:
        with pytest.raises(UserError, match="set precision=fp32"):
            prepare(config, tmp_path / "work")
        return
    plan = prepare(config, tmp_path / "work")
    metrics = train(plan)

    stopped = tmp_path / "stopped"  # as a job leaves it that is killed in round 2
    stopped.mkdir()
    shutil.copy(out / "round-000001.safetensors", stopped)
    again = prepare(dataclasses.replace(config, checkpoints_dir=str(stopped)), tmp_path / "again")
    assert again.round == 1
    train(again)
    expected, _ = read_state(out / "round-000002.safetensors")
    resumed, _ = read_state(stopped / "round-000002.safetensors")
    assert expected.keys() == resumed.keys()
    assert all(np.array_equal(tensor, resumed[name]) for name, tensor in expected.items())

    tokenizer = transformers.AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer.padding_side == ("left" if plan.pad_left else "right")
    assert ('padding="max_length"' in (out / "model" / "README.md").read_text()) == (plan.pad_to > 1)
    module = transformers.AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    test = load_task(config).test
    types = (tmp_path / "work" / "train" / "types.bin").exists()
    how = {"truncation": True, "max_length": LENGTH, "return_token_type_ids": types}
    # As the notes advise. A tokenizer without special tokens yields nothing for an empty text.
    how |= {"padding": True if plan.pad_to == 1 else "max_length"}
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.inference_mode(), autocast:
        plain = []
        for text, pair in zip(test.texts, test.pairs or [None] * len(test), strict=True):
            encoded = tokenizer(text, pair or (" " if paired else None), return_tensors="pt", **how)
            names = ("input_ids", "attention_mask", "token_type_ids")[: 3 if types else 2]
            plain.append(module(**{name: encoded[name] for name in names if name in encoded}).logits[0])
    logits = torch.stack(plain).float()
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(test.labels)).item()
    assert metrics["validation.loss"] == pytest.approx(loss, rel=TOLERANCE[precision])

    pipeline = transformers.pipeline("text-classification", model=str(out / "model"), device="cpu", top_k=None)
    examples = (
        [{"text": t, "text_pair": p} for t, p in zip(test.texts, test.pairs, strict=True)] if test.pairs else test.texts
    )
    with autocast:
        answers = [pipeline(example, **how) for example in examples[1:]]
    for scores, row in zip(answers, logits[1:].softmax(-1), strict=True):
        found = {score["label"]: score["score"] for score in (scores[0] if isinstance(scores[0], list) else scores)}
        names = [f"class {number}" for number in range(3)]
        assert [found[name] for name in names] == pytest.approx(row.tolist(), rel=TOLERANCE[precision])
