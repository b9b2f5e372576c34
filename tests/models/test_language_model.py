"""Language models: which are taken, and what a job exports."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import base, loading, probe
from scaling_fl.models.export import save_tokenizer, write_folder
from tests import builders
from tests.checkpoint.test_resume import train


def config_of(small_config: Config, tmp_path: Path, **more: Any) -> Config:
    model = str(builders.pretrained(tmp_path / "llama", "llama"))
    return dataclasses.replace(
        small_config, task_name="lm", label_column=None, iid_split=True, partition=None, model=model, num_rounds=2,
        learning_rate=0.05, **more,
    )  # fmt: skip


LORA = {"trainable": "lora", "lora_rank": 2}


@pytest.mark.parametrize(
    "more",
    [
        {},
        LORA,
        LORA | {"lora_aggregation": "exact"},
        pytest.param(LORA | {"lora_aggregation": "stack"}, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_the_export_generates_text_and_computes_the_last_round_s_perplexity(
    small_config: Config, tmp_path: Path, more: dict[str, Any]
) -> None:
    """In a process that knows nothing of the program; with adapters, they and the merged model agree."""
    config = config_of(small_config, tmp_path, **more)
    seen = train(config, tmp_path / "work")
    folder = Path(str(config.checkpoints_dir)) / "model"
    code = """
import sys, torch, transformers
from pathlib import Path
folder = sys.argv[1]
model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
assert model.config.use_cache
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
said = transformers.pipeline("text-generation", folder)("river stone", max_new_tokens=4, do_sample=False)
assert len(tokenizer(said[0]["generated_text"])["input_ids"]) >= 4, said
blocks = torch.load(sys.argv[2])
with torch.inference_mode():
    found = [model(input_ids=block[None]).logits[0, :-1].log_softmax(-1) for block in blocks]
nats = sum(-float(logs.gather(1, block[1:, None]).sum()) for logs, block in zip(found, blocks))
if Path(folder, "adapter").exists():
    from peft import PeftModel
    base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[3])
    adapted = PeftModel.from_pretrained(base, folder + "/adapter").eval()
    with torch.inference_mode():
        torch.testing.assert_close(adapted(input_ids=blocks[0][None]).logits[0, :-1].log_softmax(-1), found[0], rtol=1e-4, atol=1e-4)
print(nats / sum(len(block) - 1 for block in blocks))
"""
    from scaling_fl.data.token_store import TokenStore

    store = TokenStore(tmp_path / "work" / "test", 0)
    blocks = [store.batch(torch.tensor([row]).numpy()).input_ids[0] for row in range(len(store))]
    torch.save(blocks, tmp_path / "blocks.pt")
    arguments = [sys.executable, "-c", code, str(folder), str(tmp_path / "blocks.pt"), str(config.model)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert math.exp(float(done.stdout.split()[-1])) == pytest.approx(seen[2]["validation.perplexity"], rel=1e-3)
    assert seen[2]["validation.loss"] < seen[0]["validation.loss"]
    assert "text-generation" in (folder / "README.md").read_text()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", "lm_head", "q_proj|lm_head"])
def test_the_merged_model_computes_the_same_even_if_its_output_layer_was_its_embeddings(
    tmp_path: Path, targets: str, tied: bool
) -> None:
    torch.manual_seed(3)
    config = transformers.LlamaConfig(vocab_size=60, **builders.TINY_SIZES, pad_token_id=0, tie_word_embeddings=tied)
    module = transformers.AutoModelForCausalLM.from_config(config)
    base.freeze(module, Config(trainable="lora", lora_rank=2, lora_targets=targets))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    (tmp_path / "prepared").mkdir()
    write_folder(module, tmp_path / "prepared", tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(2, 18).view(2, 8)
    with torch.inference_mode():
        torch.testing.assert_close(merged.eval()(ids).logits, module.eval()(ids).logits, rtol=1e-4, atol=1e-5)
    assert merged.config.tie_word_embeddings == (tied and targets == "all-linear")
    assert module.config.tie_word_embeddings == tied


def test_the_cache_for_generation_is_on_in_the_export_alone(tmp_path: Path) -> None:
    module = builders.decoder()
    module.config.use_cache = False
    (tmp_path / "prepared").mkdir()
    write_folder(module, tmp_path / "prepared", tmp_path / "out")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").use_cache
    assert not module.config.use_cache, "training has no use for it"


def test_what_generation_is_configured_to_do_is_kept(small_config: Config, tmp_path: Path) -> None:
    config = config_of(small_config, tmp_path)
    transformers.GenerationConfig(temperature=0.25, do_sample=True, eos_token_id=3).save_pretrained(str(config.model))
    train(config, tmp_path / "work")
    kept = transformers.GenerationConfig.from_pretrained(Path(str(config.checkpoints_dir)) / "model")
    assert (kept.temperature, kept.eos_token_id) == (0.25, 3)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_are_refused(tmp_path: Path, kind: str) -> None:
    folder = str(builders.pretrained(tmp_path / kind, kind))
    loaded = loading.load_model(folder, (), [], 16, 1)
    with pytest.raises(UserError, match=r"its prediction of a token depends on later tokens.*use a decoder"):
        probe.prepare_padding(folder, loaded, ["river stone"], False, 16, [])


def test_architectures_without_a_head_for_tokens_are_refused(tmp_path: Path) -> None:
    folder = str(builders.pretrained(tmp_path / "distilbert", "distilbert"))
    with pytest.raises(UserError, match="distilbert models don't predict the next token, as language models do"):
        loading.load_model(folder, (), [], 16, 1)


def test_a_decoder_is_padded_on_the_right_and_rebuilt_as_a_decoder(tmp_path: Path) -> None:
    folder = str(builders.pretrained(tmp_path / "llama", "llama"))
    loaded = loading.load_model(folder, (), [], 16, 1)
    assert loaded.new_parameters == []
    assert loading.predicts_tokens(loaded.module)
    padding, texts = probe.prepare_padding(folder, loaded, ["river stone"], False, 16, [])
    assert padding == probe.Padding()
    probe.check_step(loaded.module, texts, padding, torch.device("cpu"), None)
    loaded.module.config.save_pretrained(tmp_path / "again")
    save_tokenizer(loaded, tmp_path / "again", 16, ["input_ids"])
    assert type(loading.rebuild_model(tmp_path / "again")) is type(loaded.module)
    assert loading.label_names(folder) == ()
    assert not loading.predicts_tokens(builders.bert())
