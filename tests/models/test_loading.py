import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from scaling_fl.errors import UserError
from scaling_fl.models import loading
from scaling_fl.models.masks import disable_inspection
from tests import builders

NAMES = ("World", "Sports", "Sci/Tech")


def load(model: str, seed: int = 1, max_seq_len: int = 16) -> loading.LoadedModel:
    return loading.load_model(model, NAMES, ["river stone", "engine"], max_seq_len, seed)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "albert"])
def test_a_model_folder_gets_a_new_head_initialised_from_the_seed(tmp_path: Path, kind: str) -> None:
    folder = str(builders.pretrained(tmp_path, kind))
    first, again, other = load(folder), load(folder), load(folder, seed=2)
    body = transformers.AutoModel.from_pretrained(folder).state_dict()
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
        if name in first.new_parameters and tensor.ndim > 1:
            assert not torch.equal(tensor, other.module.state_dict()[name]), "the head depends on the seed"
        elif name.partition(".")[2] in body:
            assert torch.equal(tensor, body[name.partition(".")[2]]), f"{name} is pre-trained"
    assert "classifier.weight" in first.new_parameters
    assert first.module.config.id2label == {0: "World", 1: "Sports", 2: "Sci/Tech"}
    assert first.module.config.label2id == {"World": 0, "Sports": 1, "Sci/Tech": 2}
    assert first.module.classifier.out_features == 3
    assert next(first.module.parameters()).dtype == torch.float32


def test_label_names_come_by_number_whatever_their_order_in_the_file(tmp_path: Path) -> None:
    names = {str(number): f"class {number}" for number in range(12)}
    builders.bert(num_labels=12).config.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for keys in (names, sorted(names)):  # 0, 1, 10, 11, 2, … as JSON writers sort
        (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": {key: names[key] for key in keys}}))
        assert loading.label_names(str(tmp_path)) == tuple(names.values())


def test_half_precision_weights_are_loaded_as_float32(tmp_path: Path) -> None:
    builders.bert().half().save_pretrained(tmp_path)
    builders.tokenizer().save_pretrained(tmp_path)
    assert {p.dtype for p in load(str(tmp_path)).module.parameters()} == {torch.float32}


def test_a_fine_tuned_head_with_other_labels_is_replaced(tmp_path: Path) -> None:
    builders.bert(num_labels=5).save_pretrained(tmp_path)
    builders.tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.new_parameters == ["classifier.bias", "classifier.weight"]
    assert loaded.module.classifier.out_features == 3


def test_models_that_cannot_be_loaded_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model=/no/such/model: there is no such folder"):
        load("/no/such/model")
    with pytest.raises(UserError, match=r"model=\./typo: there is no such folder"):
        load("./typo")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"model={tmp_path}: cannot load it: "):
        load(str(tmp_path))
    builders.pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=f"model={tmp_path}: cannot load it: "):
        load(str(tmp_path))


def test_an_unreachable_hub_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(self: object, name: str, timeout: float) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    with pytest.raises(UserError, match="model=no-such-model-anywhere: it is not on this machine, and the hub"):
        load("no-such-model-anywhere")


def test_weights_that_do_not_match_the_configuration_are_refused(tmp_path: Path) -> None:
    builders.pretrained(tmp_path, "distilbert")
    weights = (tmp_path / "model.safetensors").read_bytes()
    builders.pretrained(tmp_path, "bert")
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match="its weights match less than half of BertForSequenceClassification"):
        load(str(tmp_path))


def test_a_head_of_the_right_size_is_kept(tmp_path: Path) -> None:
    builders.bert(num_labels=3).save_pretrained(tmp_path)
    builders.tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.new_parameters == []
    assert torch.equal(loaded.module.classifier.weight, builders.bert(num_labels=3).classifier.weight)


def test_a_partly_cached_model_is_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builders.pretrained(tmp_path)
    asked = []
    original = transformers.AutoModelForSequenceClassification.from_pretrained

    def without_weights(source: str, local_files_only: bool, **options: object) -> object:
        if local_files_only:
            raise OSError("no weights are cached")
        return original(str(tmp_path), **options)

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", without_weights)
    config = transformers.AutoConfig.from_pretrained(tmp_path, num_labels=3)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: config)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: builders.tokenizer())
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, timeout: asked.append(name))
    assert load("lab/model").module.classifier.out_features == 3
    assert asked == ["lab/model"]


def test_max_seq_len_beyond_the_models_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"max_seq_len=65: model=.* takes at most 64 tokens"):
        load(str(builders.pretrained(tmp_path)), max_seq_len=65)


def test_the_tiny_model_builds_its_vocabulary_from_the_texts() -> None:
    texts = ["The Éclair, the queue.", "the spam and the EGG"]
    first = loading.load_model("tiny", NAMES, texts, 16, seed=1)
    again = loading.load_model("tiny", NAMES, texts, 16, seed=1)
    assert first.tokenizer.get_vocab() == again.tokenizer.get_vocab()
    assert first.tokenizer.tokenize("The eclair, EGG eggs?") == ["the", "eclair", ",", "egg", "egg", "##s", "[UNK]"]
    assert first.tokenizer("the egg")["input_ids"][0] == first.tokenizer.cls_token_id
    assert first.module.config.pad_token_id == first.tokenizer.pad_token_id == 0
    assert torch.equal(first.module.classifier.weight, again.module.classifier.weight)


def test_an_architecture_is_rebuilt_from_its_configuration(tmp_path: Path) -> None:
    loaded = load(str(builders.pretrained(tmp_path, "albert")))
    loaded.module.config.save_pretrained(tmp_path / "plan")
    again = loading.rebuild_model(tmp_path / "plan")
    assert type(again) is type(loaded.module)
    shapes = {name: tensor.shape for name, tensor in loaded.module.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    again.load_state_dict(loaded.module.state_dict())
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():  # includes what no state dict holds, such as position ids
        logits = [module.eval()(input_ids=ids).logits for module in (loaded.module, again)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("build", [builders.bert, builders.decoder])
def test_disabling_mask_inspection_does_not_change_the_logits(
    monkeypatch: pytest.MonkeyPatch, build: Callable[[], Any]
) -> None:
    for name in ("_ignore_bidirectional_mask_sdpa", "_ignore_causal_mask_sdpa"):
        look = getattr(transformers.masking_utils, name)
        monkeypatch.setattr(transformers.masking_utils, name, look)  # restored at the end
    module = build().eval()
    ids = torch.arange(12).view(2, 6)
    masks = [None, torch.ones_like(ids), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])]

    class Asked(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(str(function))
            return function(*args, **kwargs or {})

    results = []
    for looks in (True, False):
        asked: list[str] = []
        if not looks:
            disable_inspection()
        with torch.no_grad(), Asked():
            results.append([module(input_ids=ids, attention_mask=mask).logits for mask in masks])
        assert ("aten._local_scalar_dense.default" in asked) == looks
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[1][0], results[1][1])
    assert not torch.allclose(results[1][0], results[1][2])


def test_rebuilding_does_not_advance_the_random_generator(tmp_path: Path) -> None:
    loaded = load(str(builders.pretrained(tmp_path)))
    loaded.module.config.save_pretrained(tmp_path / "plan")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    loading.rebuild_model(tmp_path / "plan")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("kind", "takes"), [("bert", True), ("albert", True), ("distilbert", False), ("roberta", False)]
)
def test_which_models_use_token_types(tmp_path: Path, kind: str, takes: bool) -> None:
    assert loading.takes_token_types(load(str(builders.pretrained(tmp_path, kind))).module) is takes


def test_the_tokenizer_loads_without_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = builders.pretrained(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert loading.load_tokenizer("~/model", [], 64).get_vocab() == builders.tokenizer().get_vocab()
    (folder / "model.safetensors").unlink()
    assert loading.load_tokenizer(str(folder), [], 64).get_vocab() == builders.tokenizer().get_vocab()
    assert "stone" in loading.load_tokenizer("tiny", ["river stone"], 64).get_vocab()
    with pytest.raises(UserError, match="model=/no/such/model: there is no such folder"):
        loading.load_tokenizer("/no/such/model", [], 64)
    for model, limit in ((str(folder), 64), ("tiny", 512)):
        with pytest.raises(UserError, match=f"max_seq_len=513: model={model} takes at most {limit} tokens"):
            loading.load_tokenizer(model, [], 513)


def test_an_embedding_table_of_another_size_is_refused(tmp_path: Path) -> None:
    builders.pretrained(tmp_path)
    transformers.AutoConfig.from_pretrained(tmp_path, vocab_size=90).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"bert\.embeddings\.word_embeddings\.weight has the shape \[\d+, 16\] .*\[90, 16"
    ):
        load(str(tmp_path))


def test_a_padding_token_beyond_the_embedding_table_is_refused(tmp_path: Path) -> None:
    builders.pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<fill>"})
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"padding token <fill> has the number {size}, .* table has {size} rows; save"):
        load(str(tmp_path))


def test_feed_forward_layers_take_texts_of_any_length(tmp_path: Path) -> None:
    builders.pretrained(tmp_path)
    transformers.AutoConfig.from_pretrained(tmp_path, chunk_size_feed_forward=2).save_pretrained(tmp_path)
    module = load(str(tmp_path)).module
    assert module(input_ids=torch.tensor([[2, 5, 3]])).logits.shape == (1, 3)


def test_minus_one_is_no_limit_on_the_length(tmp_path: Path) -> None:
    config = transformers.XLNetConfig(vocab_size=len(builders.tokenizer()), d_model=16, n_layer=1, n_head=2, d_inner=32)
    transformers.XLNetModel(config).save_pretrained(tmp_path)
    builders.tokenizer().save_pretrained(tmp_path)
    assert load(str(tmp_path), max_seq_len=300)


@pytest.mark.parametrize(
    "read",
    [load, lambda model: loading.load_tokenizer(model, [], 16), loading.label_names],
    ids=["all", "tokenizer", "labels"],
)
def test_the_own_code_of_a_model_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object]
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = builders.pretrained(tmp_path / "model")
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | own))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()\n")
    with pytest.raises(UserError, match=r"cannot load it: .* without custom code"):
        read(str(folder))
    assert not (tmp_path / "run").exists()


def test_a_model_with_sparse_attention_gets_full_attention_and_a_note(tmp_path: Path) -> None:
    config = transformers.BigBirdConfig(
        vocab_size=len(builders.tokenizer()), max_position_embeddings=64, **builders.TINY_SIZES
    )
    assert config.attention_type == "block_sparse"
    transformers.BigBirdModel(config).save_pretrained(tmp_path)
    builders.tokenizer().save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert loaded.module.config.attention_type == "original_full"
    (note,) = loaded.notes
    assert note.startswith(f"model={tmp_path}: attention_type=block_sparse would hold until the first short batch only")
    assert load(str(builders.pretrained(tmp_path / "bert"))).notes == ()


def test_the_architecture_is_what_logits_depend_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job goes on with a newer library, which writes its own version into each configuration."""
    module = load(str(builders.pretrained(tmp_path))).module
    first = loading.architecture(module)
    assert first["hidden_size"] == 16
    monkeypatch.setattr(transformers.configuration_utils, "__version__", "99.0")
    module.config.use_cache, module.config.dtype, module.config.output_hidden_states = True, torch.float16, True
    module.config.architectures, module.config._name_or_path = ["Other"], "elsewhere"
    assert loading.architecture(module) == first
    module.config.hidden_dropout_prob = 0.3
    assert loading.architecture(module) == first | {"hidden_dropout_prob": 0.3}
