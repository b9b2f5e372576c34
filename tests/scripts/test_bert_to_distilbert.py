"""A BERT written as a DistilBERT computes the same."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from scaling_fl.models import export
from scaling_fl.models.loading import LoadedModel
from tests import builders
from tests.scripts.imported import imported


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return imported("bert_to_distilbert")


def bert_folder(folder: Path, model: type = transformers.BertModel, **changes: Any) -> Path:
    """A BERT of two layers with large random weights, biases and norms included."""
    sizes = builders.TINY_SIZES | {"num_hidden_layers": 2, "vocab_size": len(builders.tokenizer())}
    torch.manual_seed(3)
    bert = model(model.config_class(**sizes | {"max_position_embeddings": 24} | changes))  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    bert.save_pretrained(folder)
    loaded = LoadedModel(bert, builders.tokenizer(), [])
    export.save_tokenizer(loaded, folder, 24, ["input_ids", "token_type_ids", "attention_mask"])
    return folder


def test_the_hidden_states_are_the_same(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = bert_folder(tmp_path / "bert")
    script.main([str(source), str(tmp_path / "distilbert")])
    assert "the hidden states differ by at most" in capsys.readouterr().out
    texts = ["river", "engine wheel piston " * 5, "violin cello flute drum stone"]
    states = []
    for folder, kind in ((source, "bert"), (tmp_path / "distilbert", "distilbert")):
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModel.from_pretrained(folder).eval()
        assert model.config.model_type == kind
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        assert ("token_type_ids" in tokens) == (kind == "bert")
        with torch.no_grad():
            states.append(model(**tokens).last_hidden_state[tokens["attention_mask"].bool()])
    assert states[0].std() > 0.1
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=1e-5)


def test_the_settings_are_carried_over(script: ModuleType, tmp_path: Path) -> None:
    source = bert_folder(
        tmp_path / "bert", hidden_dropout_prob=0.13, attention_probs_dropout_prob=0.07, initializer_range=0.05,
        hidden_act="relu", pad_token_id=3,
    )  # fmt: skip
    script.convert(str(source), tmp_path / "new")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "new")
    assert (config.dropout, config.attention_dropout, config.initializer_range) == (0.13, 0.07, 0.05)
    assert (config.dim, config.hidden_dim, config.n_heads, config.n_layers) == (16, 32, 2, 2)
    assert (config.activation, config.pad_token_id) == ("relu", 3)


@pytest.mark.parametrize("difference", [2e-5, float("nan")])
def test_a_model_that_computes_something_else_is_not_written(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: float
) -> None:
    monkeypatch.setattr(script, "largest_difference", lambda bert, distilbert: difference)
    with pytest.raises(SystemExit, match=f"the hidden states differ by {difference:.1e}, more than"):
        script.main([str(bert_folder(tmp_path / "bert")), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05, but DistilBERT only has 1e-12"),
        ({"model": transformers.RobertaModel}, "model_type is 'roberta', but DistilBERT only has 'bert'"),
        ({"is_decoder": True}, "is_decoder is True, but DistilBERT only has False"),
    ],
)
def test_what_distilbert_cannot_compute_is_refused(
    script: ModuleType, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    source = bert_folder(tmp_path / "other", **changes)
    with pytest.raises(SystemExit, match=reason):
        script.main([str(source), str(tmp_path / "new")])
    assert not (tmp_path / "new").exists()


def test_a_folder_is_not_overwritten(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exists; name a new folder"):
        script.main([str(bert_folder(tmp_path / "bert")), str(tmp_path / "bert")])


def test_a_missing_model_is_refused(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no model with a tokenizer could be loaded"):
        script.main([str(tmp_path / "nothing"), str(tmp_path / "new")])
