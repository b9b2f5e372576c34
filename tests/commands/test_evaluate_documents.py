"""`evaluate` on language models: the figures of the job's last round, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from tests import builders
from tests.checkpoint.test_resume import train
from tests.commands.test_evaluate import lines_of


@pytest.fixture
def documents(small_config: Config, tmp_path: Path) -> Config:
    """A language model on the texts of the file, whose labels nobody needs."""
    model = str(builders.pretrained(tmp_path / "llama", "llama"))
    return dataclasses.replace(
        small_config, task_name="lm", label_column=None, model=model, learning_rate=0.05, data_seed=7
    )


def test_documents_are_measured_as_after_the_last_round(documents: Config, tmp_path: Path) -> None:
    last = train(documents, tmp_path / "work")[1]
    lines = lines_of(Config(checkpoint=f"{documents.checkpoints_dir}/round-000001.safetensors"))
    bits = last["validation.bits_per_byte"]
    assert lines[-8:] == [
        f"checkpoint {documents.checkpoints_dir}: round 1 of job j, model={documents.model}",
        "task lm: 9 test documents, in blocks of up to max_seq_len=16 tokens",
        "",
        f"loss              {last['validation.loss']:.4f} per token ({last['validation.tokens']:,.0f} tokens are predicted)",
        f"perplexity        {last['validation.perplexity']:.4f}",
        f"bits per byte     {bits:.4f}",
        f"byte perplexity   {2**bits:.4f}",
        f"right tokens      {last['validation.accuracy']:.4f}",
    ]


def write_choices(path: Path, count: int) -> str:
    """Each row's choices are a word and four words. The latter are right in two rows of three."""
    words = [word for of_label in builders.WORDS.values() for word in of_label]
    with open(path, "w") as file:
        for n in range(count):
            short, long = words[2 * n % 15], " ".join(words[(n + 3 * k) % 15] for k in range(4))
            row = {"prompt": words[7 * n % 15], "response": long if n % 3 else short, "options": [short, long]}
            file.write(json.dumps(row) + "\n")
    return str(path)


def test_conversations_are_measured_with_the_choices_among_their_responses(documents: Config, tmp_path: Path) -> None:
    """A sum over few tokens is higher than one over many, so that the two measures differ."""
    config = dataclasses.replace(
        documents, task_name="instructions", text_column=None, prompt_template="{prompt} : {response}",
        train_path=write_choices(tmp_path / "train.jsonl", 37), test_path=write_choices(tmp_path / "test.jsonl", 11),
        choices_column="options", max_seq_len=48, learning_rate=0.01,
    )  # fmt: skip
    last = train(config, tmp_path / "work")[1]
    whole, per_token = (last[f"validation.choice_accuracy{how}"] for how in ("", "_per_token"))
    assert whole != per_token
    lines = lines_of(Config(checkpoint=f"{config.checkpoints_dir}/round-000001.safetensors"))
    assert "task instructions: 11 test conversations of up to max_seq_len=48 tokens" in lines
    assert lines[-4:] == [
        f"perplexity        {last['validation.perplexity']:.4f}",
        f"right tokens      {last['validation.accuracy']:.4f}",
        f"right choices     {whole:.4f} of the responses chosen among each row's choices, by log-probability",
        f"… per token       {per_token:.4f} of the responses chosen among each row's choices, by its mean over tokens",
    ]


@pytest.mark.parametrize(
    ("folder", "keys", "message"),
    [
        ("saved", {}, "^task_name=lm: the model classifies texts; name a language model, or the task"),
        ("llama", {"csv_path": "rows.csv"}, "^csv_path=rows.csv: a language model has no predictions of rows; leave it out"),
    ],
)  # fmt: skip
def test_what_has_no_figures_is_refused(
    documents: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, keys: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    builders.bert().save_pretrained(tmp_path / "saved")
    builders.tokenizer().save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match=message):
        lines_of(dataclasses.replace(documents, checkpoint=str(tmp_path / folder), **keys))
    assert not (tmp_path / "rows.csv").exists()
