"""LoRA: what is trained, what the adapted model computes, and its two exports."""

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import adapters, base, export
from scaling_fl.models.flat_parameters import Layout
from scaling_fl.state_file import read_state
from tests import builders
from tests.checkpoint.test_resume import train

LORA = Config(trainable="lora", lora_rank=3, lora_alpha=6.0)
EXACT = dataclasses.replace(LORA, lora_aggregation="exact")
CUT = dataclasses.replace(LORA, lora_aggregation="stack", lora_delta_rank=2)
KINDS: dict[str, Any] = {
    "bert": builders.bert,
    "distilbert": lambda: classifier(transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32)),
    "albert": lambda: classifier(transformers.AlbertConfig(embedding_size=8, **SIZES)),
    "roberta": lambda: classifier(transformers.RobertaConfig(**SIZES)),
    "gpt2": lambda: classifier(transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, pad_token_id=0)),
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def classifier(config: Any) -> Any:
    torch.manual_seed(7)
    config.num_labels, config.vocab_size = 3, 60
    return transformers.AutoModelForSequenceClassification.from_config(config)


def logits(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        ids = torch.arange(2, 22).view(2, 10)
        return module.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@torch.no_grad()
def trained(module: Any) -> Any:
    """Give A, B, the head, and what aggregation adds to the base, values that make a difference."""
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad or adapters.is_delta(name):
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_and_the_head_are_trained_and_the_model_starts_as_it_was(kind: str) -> None:
    module = KINDS[kind]()
    before, everything = logits(module), {name: p.detach().clone() for name, p in module.named_parameters()}
    base.freeze(module, LORA)
    assert torch.equal(logits(module), before)
    layout = Layout(module)
    found = {entry.name for entry in layout.entries}
    head = {name for name in everything if not name.startswith(f"{module.base_model_prefix}.")}
    assert found == adapters.names(module) | head
    assert layout.trained == layout.size
    frozen = {adapters.plain_name(name): array for name, array in base.arrays(module).items()}
    assert frozen.keys() | head == everything.keys()
    assert all((array == everything[name].numpy()).all() for name, array in frozen.items())
    assert not any(name.startswith(tuple(head_layers(head))) for name in adapters.names(module))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (3.0, 1.0), (4.5, 1.5)])
def test_b_a_counts_alpha_over_rank_times_and_alpha_is_twice_the_rank_by_default(
    alpha: float | None, scale: float
) -> None:
    module = builders.bert()
    base.freeze(module, dataclasses.replace(LORA, lora_alpha=alpha))
    state = trained(module).state_dict()
    layer = "bert.encoder.layer.0.attention.self.query"
    a, b = (state[f"{layer}.lora_{which}.default.weight"] for which in "AB")
    assert (a.shape, b.shape) == ((3, 16), (16, 3))
    torch.testing.assert_close(
        adapters.merged(module)[f"{layer}.weight"], state[f"{layer}.base_layer.weight"] + scale * b @ a
    )


def test_a_is_drawn_by_the_seed_of_the_job() -> None:
    def drawn(**keys: int) -> torch.Tensor:
        module = builders.bert()
        base.freeze(module, dataclasses.replace(LORA, **keys))
        return module.state_dict()["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"]

    assert torch.equal(drawn(), drawn(data_seed=3))
    assert not torch.equal(drawn(), drawn(seed=3))


def head_layers(head: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in head}


def test_an_adapted_layer_adds_alpha_by_rank_times_b_a() -> None:
    module = trained(freeze(builders.bert(), LORA))
    layer = module.bert.encoder.layer[0].intermediate.dense
    x = torch.randn(5, layer.in_features)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (A.shape, B.shape) == ((3, layer.in_features), (layer.out_features, 3))
    expected = x @ (layer.base_layer.weight + 6 / 3 * B @ A).T + layer.base_layer.bias
    torch.testing.assert_close(layer(x), expected)


def freeze(module: Any, config: Config, new: list[str] | None = None) -> Any:
    base.freeze(module, config, new or [])
    return module


@pytest.mark.parametrize("config", [EXACT, CUT])
@pytest.mark.parametrize("kind", ["distilbert", "gpt2"])
def test_what_aggregation_adds_to_the_base_is_frozen_starts_at_zero_and_stands_in_checkpoints(
    kind: str, config: Config
) -> None:
    module = KINDS[kind]()
    before = logits(module)
    plain = Layout(freeze(copy.deepcopy(module), LORA))
    freeze(module, config)
    assert torch.equal(logits(module), before)
    layout = Layout(module)
    assert layout.entries[: len(plain.entries)] == plain.entries, "what is trained is the same"
    added = [entry.name for entry in layout.entries[len(plain.entries) :]]
    assert all(map(adapters.is_delta, added))
    assert len(added) == len([name for name in adapters.names(module) if not adapters.is_delta(name)])
    assert layout.fixed == set(added)
    for name in (name for name in added if ".lora_A." in name):
        a, b = module.get_parameter(name), module.get_parameter(name.replace(".lora_A.", ".lora_B."))
        assert len(a) == b.shape[1] == (config.lora_delta_rank or min(a.shape[1], len(b)))
        assert not (b @ a).any()


@pytest.mark.parametrize("config", [LORA, EXACT, CUT])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_the_same(kind: str, config: Config) -> None:
    module = trained(freeze(KINDS[kind](), config))
    plain = KINDS[kind]()
    plain.load_state_dict(adapters.merged(module))
    torch.testing.assert_close(logits(plain), logits(module), rtol=1e-5, atol=1e-6)


def test_the_seed_draws_a_and_b_starts_at_zero() -> None:
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        module = freeze(builders.bert(), dataclasses.replace(LORA, seed=seed))
        return {name: module.get_parameter(name) for name in adapters.names(module)}

    one, again, other = drawn(1), drawn(1), drawn(2)
    for name, values in one.items():
        assert torch.equal(values, again[name])
        assert torch.equal(values, other[name]) == (".lora_B." in name)
        assert values.any() == (".lora_A." in name)


def test_adapters_drop_the_share_of_values_that_the_key_says() -> None:
    module = freeze(builders.bert(), dataclasses.replace(LORA, lora_dropout=0.3))
    layer = module.bert.encoder.layer[0].intermediate.dense
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(1.0)
        layer.lora_B["default"].weight.fill_(1.0)
    x = torch.ones(1, layer.in_features)
    module.train()
    torch.manual_seed(1)
    kept = layer.lora_dropout["default"](torch.ones(10_000))
    # Binomial(10,000, 0.7), with a standard deviation of 46; what is kept counts 1 / 0.7 times.
    assert int((kept > 0).sum()) == pytest.approx(7000, abs=5 * 46)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert not torch.equal(layer(x), layer(x))
    module.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("build", "kind"), [(builders.bert, "SEQ_CLS"), (builders.decoder, "CAUSAL_LM")])
@pytest.mark.parametrize(
    ("model", "named"), [("bert", "bert-base-cased"), ("lab/model-1", "lab/model-1"), ("tiny", None)]
)
def test_saved_adapters_name_their_base_and_its_kind(
    tmp_path: Path, build: Any, kind: str, model: str, named: str | None
) -> None:
    adapters.save(freeze(build(), dataclasses.replace(LORA, model=model)), tmp_path)
    described = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (described["base_model_name_or_path"], described["task_type"]) == (named, kind)


def test_targets_are_a_part_of_the_layers_names() -> None:
    found = adapters.names(freeze(builders.bert(), dataclasses.replace(LORA, lora_targets="query|value")))
    assert {name.split(".")[6] for name in found} == {"query", "value"}
    assert len(found) == 2 * 2  # A and B


def test_layers_without_pretrained_weights_are_trained_whole() -> None:
    new = ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]
    module = freeze(builders.bert(), LORA, new)
    assert {name for name, p in module.named_parameters() if p.requires_grad} == adapters.names(module) | set(new)
    assert not any("pooler" in name for name in adapters.names(module))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("qery", r"lora_targets=qery: selects no layers .* are classifier, dense, key, query, value"),
        ("LayerNorm", "lora_targets=LayerNorm: selects no layers"),
        (
            "word_embeddings",
            r"selects bert\.embeddings\.word_embeddings, a table of embeddings; .* are classifier, dense",
        ),
        ("(", r"lora_targets=\(: not a regular expression .*write all-linear"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused(targets: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        freeze(builders.bert(), dataclasses.replace(LORA, lora_targets=targets))


def test_convolutions_are_refused() -> None:
    module = classifier(transformers.ConvBertConfig(embedding_size=16, **SIZES))
    with pytest.raises(
        UserError, match=r"lora_targets=pointwise: selects .*pointwise, which isn't a linear layer; the m"
    ):
        freeze(module, dataclasses.replace(LORA, lora_targets="pointwise"))


@pytest.mark.parametrize("name", ["lora_rank", "lora_alpha", "lora_dropout", "lora_targets"])
def test_its_keys_need_it(name: str) -> None:
    value = {"lora_targets": "query", "lora_dropout": 0.1}.get(name, 4)
    with pytest.raises(UserError, match=f"{name}={value}.*: belongs to trainable=lora"):
        Config.from_mapping({name: value})


@pytest.mark.parametrize(
    "more",
    [
        {},
        pytest.param({"lora_aggregation": "exact"}, marks=pytest.mark.thorough),
        {"lora_aggregation": "stack", "lora_delta_rank": 3},
    ],
)
def test_a_job_exports_an_adapter_and_a_merged_model_that_agree(
    small_config: Config, tmp_path: Path, more: dict[str, Any]
) -> None:
    """Both are loaded by a process that knows nothing of the program."""
    config = dataclasses.replace(small_config, trainable="lora", lora_rank=2, num_rounds=2, learning_rate=0.05, **more)
    seen = train(config, tmp_path / "work")
    folder = Path(str(config.checkpoints_dir))
    tensors, _ = read_state(folder / "round-000002.safetensors")
    assert {name.split(".")[-3] for name in tensors if "classifier" not in name} == {"lora_A", "lora_B"}
    sent = sum(array.size for name, array in tensors.items() if not adapters.is_delta(name))
    assert seen[2]["bytes.up"] == 4 * sent * len(config.site_ids)
    described = (folder / "model" / "adapter" / "adapter_config.json").read_text()
    assert str(tmp_path) not in described
    assert json.loads(described)["r"] == 2
    code = """
import sys, torch, transformers
from peft import PeftModel
load = transformers.AutoModelForSequenceClassification.from_pretrained
ids = torch.arange(2, 18).view(2, 8)
merged = load(sys.argv[1]).eval()
adapted = PeftModel.from_pretrained(load(sys.argv[2], num_labels=merged.config.num_labels), sys.argv[1] + "/adapter").eval()
plain = load(sys.argv[2], num_labels=merged.config.num_labels).eval()
with torch.inference_mode():
    one, other, third = (model(input_ids=ids).logits for model in (merged, adapted, plain))
torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
assert not torch.allclose(one, third, atol=1e-2)
"""
    arguments = [sys.executable, "-c", code, str(folder / "model"), str(config.model)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_export_is_checked_before_training(tmp_path: Path) -> None:
    """`write_folder` leaves the module as it is."""
    module = trained(freeze(builders.bert(), LORA))
    before = logits(module)
    builders.tokenizer().save_pretrained(tmp_path / "prepared")
    export.write_folder(module, tmp_path / "prepared", tmp_path / "model")
    assert torch.equal(logits(module), before)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(again), before, rtol=1e-5, atol=1e-6)
