from pathlib import Path

import huggingface_hub
import pytest

from scaling_fl.checkpoint.model_card import model_card
from scaling_fl.config.schema import Config

NAMES = ("a|b", "1\n2", "<i>*c*</i>")


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("distilbert", "distilbert-base-cased"),
        ("lab/model-1", "lab/model-1"),
        ("tiny", None),
        ("/secret/model", None),
        ("folder", None),
    ],
)
def test_a_card_names_the_base_model_but_no_local_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, base: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    config = Config(model=model, train_path="/secret/train.csv", job_name="news", max_seq_len=77, learning_rate=3e-4)
    text = model_card(
        config, NAMES, 5, 12, {"validation.accuracy": 0.75, "held_back.loss": 0.5, "site.1.train.loss": 2.0}
    )
    card = huggingface_hub.ModelCard(text)
    assert card.data.base_model == base
    assert (card.data.pipeline_tag, card.data.library_name) == ("text-classification", "transformers")
    assert "secret" not in text
    assert "folder" not in text
    rows = text.splitlines()
    for row in (
        r"| 0 | a\|b |", "| 1 | 1 2 |", r"| 2 | \<i\>\*c\*\</i\> |", "| sites | 5 |", "| rounds | 12 |",
        r"| max\_seq\_len | 77 |", "| validation.accuracy | 0.7500 |", "## Results after round 12",
        r"| held\_back.loss | 0.5000 |",
    ):  # fmt: skip
        assert row in rows
    assert "site.1" not in text
    assert 'classify("a text", truncation=True)' in rows
    pairs = model_card(Config(text_pair_column="b"), NAMES, 5, 12, {})
    assert 'classify({"text": "a text", "text_pair": "another text"}, truncation=True)' in pairs
    assert "## Results" not in pairs


def test_the_card_of_a_model_whose_results_depend_on_padding_shows_how_to_pad() -> None:
    config = Config(model="tiny", job_name="news", max_seq_len=77)
    padded = model_card(config, NAMES, 5, 12, {}, min_length=77)
    assert 'classify("a text", padding="max_length", max_length=77, truncation=True)' in padded
    assert "The results of this model depend on padding" in padded
    assert 'classify("a text", truncation=True)' in model_card(config, NAMES, 5, 12, {})


@pytest.mark.parametrize("private", [True, False])
def test_the_card_of_a_private_model_keeps_the_seed_to_itself(private: bool) -> None:
    """Who took part follows from it, and epsilon holds only for somebody who doesn't know that."""
    keys = {"dp_clip": 1.5, "dp_noise_multiplier": 0.75, "dp_delta": 1e-3} if private else {}
    text = model_card(Config(model="tiny", job_name="news", seed=987654, **keys), NAMES, 5, 12, {})
    assert ("987654" in text) != private
    assert (r"| dp\_clip | 1.5000 |" in text.splitlines()) == private
    assert (r"| dp\_noise\_multiplier | 0.7500 |" in text.splitlines()) == private
    assert r"| data\_seed | 58923 |" in text.splitlines(), "it says nothing of cohorts"


def test_the_card_names_the_length_of_local_training_once() -> None:
    def rows(**keys: object) -> set[str]:
        text = model_card(Config(model="tiny", job_name="news", **keys), NAMES, 5, 12, {})  # type: ignore[arg-type]
        return {row.split(" | ")[0].strip("| ") for row in text.splitlines() if "local" in row and row[:1] == "|"}

    assert rows() == {r"num\_local\_epochs"}
    assert rows(num_local_steps=4) == {r"num\_local\_steps"}
    assert rows(local_epochs_range=(1, 3)) == {r"local\_epochs\_range"}


def test_small_and_odd_numbers_are_not_rounded() -> None:
    config = Config(model="tiny", job_name="news", learning_rate=2e-5, weight_decay=0.25)
    rows = model_card(config, NAMES, 5, 12, {"validation.accuracy": 2 / 3}).splitlines()
    assert r"| learning\_rate | 2e-05 |" in rows
    assert r"| weight\_decay | 0.2500 |" in rows
    assert f"| validation.accuracy | {2 / 3} |" in rows


@pytest.mark.parametrize(
    ("model", "names", "base"),
    [
        ("bert", NAMES, 'AutoModelForSequenceClassification.from_pretrained("bert-base-cased", num_labels=3)'),
        ("lab/model-1", (), 'AutoModelForCausalLM.from_pretrained("lab/model-1")'),
        ("/secret/model", (), 'AutoModelForCausalLM.from_pretrained("BASE")'),
    ],
)
def test_the_card_of_adapters_says_what_they_are_loaded_beside(model: str, names: tuple[str, ...], base: str) -> None:
    config = Config(model=model, job_name="news", trainable="lora", merge=False)
    rows = model_card(config, names, 5, 12, {}).splitlines()
    assert f"base = {base}" in rows
    assert f"from transformers import {base.partition('.')[0]}" in rows
    assert 'model = PeftModel.from_pretrained(base, "FOLDER/adapter")' in rows
    assert not any("secret" in row for row in rows)
