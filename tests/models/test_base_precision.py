"""The frozen base in half precision, layers that are trained whole beside adapters, and adapters that are exported alone."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from scaling_fl import host
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.models import adapters, base, four_bit, loading
from scaling_fl.models.flat_parameters import Layout
from tests import builders
from tests.checkpoint.test_resume import train
from tests.models.test_language_model import config_of

LORA = Config(trainable="lora", lora_rank=2)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_matrices_of_the_base_are_stored_in_half_the_memory(tmp_path: Path, kind: str) -> None:
    config = dataclasses.replace(LORA, base_precision="bf16")
    module, other = (builders.decoder() if kind == "llama" else builders.bert() for _ in range(2))
    base.freeze(module, config)
    base.write(tmp_path, module, config)
    whole = base.arrays(module)
    base.attach(tmp_path, other, config)
    for name, array in whole.items():
        stored = other.get_parameter(name).data
        assert stored.dtype == (torch.bfloat16 if array.ndim >= 2 else torch.float32), name
        assert torch.equal(stored.float(), torch.from_numpy(array).to(stored.dtype).float())
    Layout(other)  # what is trained is float32
    base.convert(module, config)
    assert all(torch.equal(module.get_parameter(name), other.get_parameter(name)) for name in whole)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "nf4"])
def test_the_base_can_be_put_elsewhere(tmp_path: Path, precision: str) -> None:
    if precision == "nf4":
        pytest.importorskip("bitsandbytes")
    config = dataclasses.replace(LORA, base_precision=precision)
    module, other = builders.decoder(), builders.decoder(seed=2)
    base.freeze(module, config)
    base.write(tmp_path, module, config)
    base.attach(tmp_path, other, config)
    ids = torch.arange(14).view(2, 7)

    def logits() -> torch.Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            found: torch.Tensor = other(input_ids=ids).logits
            return found

    expected, tensors = logits(), base.tensors(other)
    assert {id(p) for p in other.parameters() if not p.requires_grad} <= {id(tensor) for tensor in tensors.values()}
    for tensor in tensors.values():
        tensor.data = tensor.data.clone()
    assert torch.equal(logits(), expected)
    for name in [name for name in tensors if precision != "nf4" or name.endswith(".scales")]:
        tensors[name].data = tensors[name].data * 2
    assert not torch.equal(logits(), expected)


@pytest.mark.parametrize("task", ["lm", pytest.param("csv", marks=pytest.mark.thorough)])
def test_a_job_trains_beside_a_base_in_bf16(small_config: Config, tmp_path: Path, task: str) -> None:
    """Its loss is that of float32, to bf16's digits; the export computes in float32 what was trained."""
    keys = {"trainable": "lora", "lora_rank": 2, "num_rounds": 2, "learning_rate": 0.02}
    plain = config_of(small_config, tmp_path) if task == "lm" else small_config
    plain = dataclasses.replace(plain, checkpoints_dir=str(tmp_path / "plain"), **keys)
    half = dataclasses.replace(plain, base_precision="bf16", checkpoints_dir=str(tmp_path / "half"))
    of_plain, of_half = train(plain, tmp_path / "a"), train(half, tmp_path / "b")
    stored = safetensors.torch.load_file(tmp_path / "b" / "base.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim >= 2} == {torch.bfloat16}
    for round_ in (0, 2):
        assert of_half[round_]["validation.loss"] == pytest.approx(of_plain[round_]["validation.loss"], rel=0.03)
        assert of_half[round_]["validation.loss"] != of_plain[round_]["validation.loss"]
    weights = safetensors.torch.load_file(tmp_path / "half" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}, "as the pre-trained weights"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_precision": "bf16"}, "base_precision=bf16: every parameter is trained, so there is no frozen base"),
        (
            {"base_precision": "bf16", "trainable": "lora", "precision": "fp32"},
            "base_precision=bf16 precision=fp32: products of bf16 matrices are computed in bf16; leave out precision",
        ),
        (
            {"base_precision": "nf4", "trainable": "lora", "model": "tiny"},
            "base_precision=nf4 model=tiny: it has no pre-trained weights, so there is no base; leave out base_precision",
        ),
        ({"modules_to_save": "lm_head"}, "modules_to_save=lm_head: belongs to trainable=lora"),
        ({"merge": False}, "merge=False: belongs to trainable=lora"),
        (
            {"merge": False, "trainable": "lora", "model": "tiny"},
            "merge=False model=tiny: it has no pre-trained weights that the adapters could be loaded beside; leave out m",
        ),
    ],
)
def test_keys_without_a_frozen_base_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config.from_mapping(keys)


@pytest.mark.parametrize(
    ("pattern", "layer"), [("lm_head", "lm_head"), ("embed_tokens", "model.embed_tokens"), ("norm", "")]
)
def test_layers_are_trained_whole_beside_the_adapters(pattern: str, layer: str) -> None:
    """The head of this decoder is its table of embeddings: either name selects it."""
    module = builders.decoder()
    base.freeze(module, dataclasses.replace(LORA, modules_to_save=pattern))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    whole = trained - adapters.names(module)
    if layer:
        assert whole == {"model.embed_tokens.weight"}
        assert module.get_submodule(layer).weight.requires_grad
    else:
        assert whole == {name for name in dict(module.named_parameters()) if "norm" in name}
    assert whole.isdisjoint(base.arrays(module))
    assert adapters.names(module)


def test_a_layer_that_is_trained_whole_has_no_adapter() -> None:
    module = builders.bert()
    base.freeze(module, dataclasses.replace(LORA, modules_to_save=r"layer\.0\.attention\.self\.query"))
    of_layer = {
        name for name, p in module.named_parameters() if "layer.0.attention.self.query" in name and p.requires_grad
    }
    assert of_layer == {f"bert.encoder.layer.0.attention.self.query.{kind}" for kind in ("weight", "bias")}
    with pytest.raises(UserError, match="modules_to_save=qery: selects none of the model's parameters"):
        base.freeze(builders.bert(), dataclasses.replace(LORA, modules_to_save="qery"))


def test_adapters_are_exported_alone(small_config: Config, tmp_path: Path) -> None:
    from peft import PeftModel

    keys = {"trainable": "lora", "lora_rank": 2, "modules_to_save": "norm"}
    merged = config_of(small_config, tmp_path, **keys)
    alone = dataclasses.replace(merged, merge=False, checkpoints_dir=str(tmp_path / "alone"))
    merged = dataclasses.replace(merged, checkpoints_dir=str(tmp_path / "merged"))
    for config in (merged, alone):
        train(config, tmp_path / f"work-{config.merge}")
    assert not list((tmp_path / "alone" / "model").glob("*.safetensors"))
    listed = json.loads((tmp_path / "alone" / "model" / "scaling_fl.json").read_text())
    assert listed["round"] == 2
    card = (tmp_path / "alone" / "model" / "README.md").read_text()
    assert 'PeftModel.from_pretrained(base, "FOLDER/adapter")' in card
    load = transformers.AutoModelForCausalLM.from_pretrained
    adapted = PeftModel.from_pretrained(load(str(merged.model)), tmp_path / "alone" / "model" / "adapter").eval()
    ids = torch.arange(4, 20).view(2, 8)
    with torch.inference_mode():
        expected = load(tmp_path / "merged" / "model").eval()(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("selected", ["lm_head", "embed_tokens", "lm_head|embed_tokens"])
def test_tied_weights_that_are_trained_whole_stand_in_the_adapter_for_each_of_their_names(
    tmp_path: Path, selected: str
) -> None:
    from peft import PeftModel

    builders.pretrained(tmp_path / "base", "llama")
    load = transformers.AutoModelForCausalLM.from_pretrained
    module = load(tmp_path / "base")
    base.freeze(module, dataclasses.replace(LORA, modules_to_save=selected))
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) / 4)
    adapters.save(module, tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter").eval()
    ids = torch.arange(4, 20).view(2, 8)
    with torch.inference_mode():
        expected = module.eval()(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_merged_weights_are_added_in_float32_and_have_the_type_of_the_pretrained_ones(
    small_config: Config, tmp_path: Path
) -> None:
    config = config_of(small_config, tmp_path, trainable="lora", lora_rank=2)
    transformers.AutoModelForCausalLM.from_pretrained(str(config.model)).bfloat16().save_pretrained(str(config.model))
    train(config, tmp_path / "work")
    folder = Path(str(config.checkpoints_dir)) / "model"
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert transformers.AutoConfig.from_pretrained(folder).dtype == torch.bfloat16
    before = safetensors.torch.load_file(Path(config.model) / "model.safetensors")
    parts = safetensors.torch.load_file(folder / "adapter" / "adapter_model.safetensors")
    peft = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    in_bf16 = 0
    for name in (name for name in parts if ".lora_A." in name):
        matrix = name.removeprefix("base_model.model.").replace(".lora_A", "")
        product = parts[name.replace("lora_A", "lora_B")] @ parts[name] * (peft["lora_alpha"] / peft["r"])
        assert torch.equal(weights[matrix], (before[matrix].float() + product).bfloat16()), matrix
        in_bf16 += int((weights[matrix] != before[matrix] + product.bfloat16()).sum())
    assert in_bf16, "it would differ"


def test_a_model_beyond_the_memory_is_refused_with_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(builders.pretrained(tmp_path / "llama", "llama"))
    count = sum(p.numel() for p in transformers.AutoModelForCausalLM.from_pretrained(model).parameters())
    monkeypatch.setattr(host, "free_memory", lambda: 4.0 * count)
    loading.load_model(model, (), [], 16, 1)
    monkeypatch.setattr(host, "free_memory", lambda: 4.0 * count - 1)
    with pytest.raises(
        UserError, match=r"its 0\.00 B parameters take 0\.0 GiB in float32, and 0\.0 GiB of memory are free"
    ):
        loading.load_model(model, (), [], 16, 1)


def test_a_delta_of_the_base_beyond_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's second adapter has as many values as its two matrices."""
    config = dataclasses.replace(LORA, lora_aggregation="exact", lora_delta_rank=3)
    module = builders.bert()
    base.freeze(module, config)
    count = sum(p.numel() for name, p in module.named_parameters() if adapters.is_delta(name))
    monkeypatch.setattr(host, "free_memory", lambda: 4.0 * count)
    base.freeze(builders.bert(), config)
    monkeypatch.setattr(host, "free_memory", lambda: 4.0 * count - 1)
    with pytest.raises(UserError, match=r"lora_aggregation=exact: .* take 0\.0 GiB .* free; lower lora_delta_rank"):
        base.freeze(builders.bert(), config)
    with pytest.raises(UserError, match=r"free; set lora_delta_rank=16$"):  # eight times the adapters' own
        base.freeze(builders.bert(), dataclasses.replace(config, lora_delta_rank=None))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_four_bits_compute_what_their_values_do(tmp_path: Path, kind: str) -> None:
    """Forward and backward, against the same model whose matrices were rounded to four bits."""
    config = dataclasses.replace(LORA, base_precision="nf4")
    modules = [(builders.decoder() if kind == "llama" else builders.bert(dropout=0.0)) for _ in range(3)]
    plain, four, whole = modules
    base.freeze(plain, config)
    base.write(tmp_path, plain, config)
    base.attach(tmp_path, four, config)
    with torch.no_grad():
        for name in adapters.names(plain):
            values = torch.randn(plain.get_parameter(name).shape, generator=torch.Generator().manual_seed(len(name)))
            plain.get_parameter(name).copy_(values / 5)
            four.get_parameter(name).copy_(values / 5)
        for name, parameter in plain.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                four.get_parameter(name).copy_(parameter)
    base.convert(plain, config)
    ids = torch.arange(4, 24).view(2, 10)
    expected, found = (module.eval()(input_ids=ids).logits for module in (plain, four))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    expected.square().mean().backward()
    found.square().mean().backward()
    for name in adapters.names(plain):
        torch.testing.assert_close(four.get_parameter(name).grad, plain.get_parameter(name).grad, rtol=1e-3, atol=1e-6)
    assert (whole.eval()(input_ids=ids).logits - expected).abs().max() > 1e-3
    merged = adapters.merged(four)
    assert merged.keys() == whole.state_dict().keys()
    whole.load_state_dict(merged)
    torch.testing.assert_close(whole(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
    assert Layout(four).entries == Layout(plain).entries
    stored = safetensors.torch.load_file(tmp_path / "base.safetensors")
    packed = {name: tensor for name, tensor in stored.items() if tensor.dtype == torch.uint8}
    assert packed.keys() == four_bit.names(plain)
    assert all(2 * tensor.numel() == plain.get_parameter(name).numel() for name, tensor in packed.items())


def test_an_output_layer_that_is_the_table_of_embeddings_is_not_quantised(tmp_path: Path) -> None:
    config = dataclasses.replace(LORA, base_precision="nf4", lora_targets="q_proj|lm_head")
    plain, four = builders.decoder(), builders.decoder()
    base.freeze(plain, config)
    base.write(tmp_path, plain, config)
    base.attach(tmp_path, four, config)
    base.convert(plain, config)
    assert all(".q_proj." in name for name in four_bit.names(plain))
    ids = torch.arange(4, 24).view(2, 10)
    torch.testing.assert_close(*(m.eval()(input_ids=ids).logits for m in (four, plain)), rtol=1e-5, atol=1e-5)


def test_a_job_trains_beside_a_base_in_four_bits(small_config: Config, tmp_path: Path, command: Any) -> None:
    """Its export has the values that it trained with, and `evaluate` computes the same metrics."""
    config = dataclasses.replace(
        config_of(small_config, tmp_path), trainable="lora", lora_rank=2, base_precision="nf4", learning_rate=0.02
    )
    seen = train(config, tmp_path / "work")
    assert seen[2]["validation.loss"] < seen[0]["validation.loss"]
    done = command(
        "evaluate",
        "with",
        f"checkpoint={config.checkpoints_dir}/round-000002.safetensors",
        f"test_path={config.test_path}",
    )
    assert f"loss              {seen[2]['validation.loss']:.4f} per token" in done.stdout, done.stdout + done.stderr


def test_four_bits_need_their_package_and_a_device_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    four_bit.check(torch.device("cpu"))
    monkeypatch.setattr(four_bit, "unpack", lambda packed, scales, shape: torch.zeros(shape))
    with pytest.raises(
        UserError, match=r"bitsandbytes doesn't work on cpu \(AssertionError: values are wrong by 1.00\)"
    ):
        four_bit.check(torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        UserError, match=r"base_precision=nf4: it needs the package bitsandbytes: \./run-local.sh -m pip"
    ):
        four_bit.check(torch.device("cpu"))
    with pytest.raises(
        UserError, match="base_precision=nf4 trainable=head: four bits hold the layers that have adapters"
    ):
        Config.from_mapping({"base_precision": "nf4", "trainable": "head"})
