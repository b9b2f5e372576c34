"""The exported folder gives, in transformers' own pipeline, what the program evaluates."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers

from scaling_fl import host
from scaling_fl.config.schema import Config
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from scaling_fl.federated.resident import Resident
from scaling_fl.models import base, export, loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.runtime import preparation
from scaling_fl.state_file import TensorFiles
from tests import builders

# The first two pairs have the same tokens in another order; the third exceeds max_seq_len, and the last is empty.
ROWS = (
    ("river stone", "engine wheel", "a"), ("engine wheel", "river stone", "b"),
    ("river " * 30, "engine " * 20, "b"), ("violin", "", "a"),
)  # fmt: skip


@pytest.fixture
def pair_config(small_config: Config, tmp_path: Path) -> Config:
    path = tmp_path / "pairs.csv"
    path.write_text("".join(f"{','.join(row)}\n" for row in (("one", "two", "kind"), *ROWS)))
    return dataclasses.replace(
        small_config, train_path=str(path), test_path=str(path), text_column="one", label_column="kind"
    )


def trained(config: Config, work: Path) -> Resident:
    """A worker's model after preparation, with other values of the trained parameters."""
    work.mkdir()
    preparation.prepare(Mock(), config, str(work))
    module = loading.rebuild_model(work / "model")
    model = FlatModel(module, torch.zeros(Layout(module).size))
    model.fill(model.flat, TensorFiles(work / "state.safetensors"))
    torch.manual_seed(7)
    model.flat[: model.layout.trained] += 0.3 * torch.randn(model.layout.trained)
    store = TokenStore(work / "test", module.config.pad_token_id)
    return Resident(config, model, store, store, torch.device("cpu"))


def assert_pipeline_agrees(resident: Resident, prepared: Path, target: Path, pairs: bool) -> Any:
    export.write_folder(resident.model.module, prepared, target)
    module = resident.model.module.eval()
    with torch.inference_mode():
        logits = resident.logits(resident.test.batch(np.arange(len(ROWS))))
    names = module.config.id2label
    expected = [{names[i]: p for i, p in enumerate(row)} for row in logits.double().softmax(-1).tolist()]
    assert max(abs(row["a"] - 0.5) for row in expected) > 0.05, "the model tells texts apart"
    classify = transformers.pipeline("text-classification", str(target), device="cpu", top_k=None)
    # A single call of a tokenizer takes an empty second text for none, unlike a call with a list.
    inputs = [{"text": one, "text_pair": two or " "} if pairs else one for one, two, _ in ROWS]
    for answer, row in zip(classify(inputs, truncation=True), expected, strict=True):
        assert {each["label"]: each["score"] for each in answer} == pytest.approx(row, abs=1e-5)
    return classify.tokenizer


@pytest.mark.parametrize("pairs", [False, True], ids=["singles", "pairs"])
@pytest.mark.parametrize("kind", ["tiny", "bert", "albert", "distilbert", "roberta"])
def test_a_pipeline_of_the_export_equals_the_programs_evaluation(
    pair_config: Config, tmp_path: Path, kind: str, pairs: bool
) -> None:
    model = "tiny" if kind == "tiny" else str(builders.pretrained(tmp_path / kind, kind))
    config = dataclasses.replace(pair_config, model=model, text_pair_column="two" if pairs else None)
    resident = trained(config, tmp_path / "work")
    tokenizer = assert_pipeline_agrees(resident, tmp_path / "work" / "model", tmp_path / "export", pairs)

    typed = pairs and kind in ("tiny", "bert", "albert")
    assert ("token_type_ids" in tokenizer.model_input_names) is typed
    assert (resident.test.types is not None) is typed
    assert tokenizer.model_max_length == config.max_seq_len
    for path in (tmp_path / "export").glob("*.json"):
        assert str(tmp_path) not in path.read_text(), path.name
        assert not json.loads(path.read_text()).keys() & {"is_local", "local_files_only", "name_or_path"}


def test_settings_of_the_base_models_config_do_not_reach_the_export(pair_config: Config, tmp_path: Path) -> None:
    config = Path(pair_config.model) / "config.json"
    settings = {
        "output_attentions": True, "output_hidden_states": True, "return_dict": False, "use_cache": True,
        "problem_type": "multi_label_classification",
    }  # fmt: skip
    plain = trained(pair_config, tmp_path / "plain")
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))
    resident = trained(pair_config, tmp_path / "work")
    assert torch.equal(resident.model.flat, plain.model.flat)
    assert_pipeline_agrees(resident, tmp_path / "work" / "model", tmp_path / "export", pairs=False)
    exported = transformers.AutoConfig.from_pretrained(tmp_path / "export")
    assert {key: getattr(exported, key) for key in settings} == {
        "output_attentions": False, "output_hidden_states": False, "return_dict": True, "use_cache": False,
        "problem_type": "single_label_classification",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bert", "albert", "distilbert", "roberta", "roformer"])
def test_the_preparation_has_the_layout_of_the_workers(tmp_path: Path, kind: str) -> None:
    loaded = loading.load_model(str(builders.pretrained(tmp_path / kind, kind)), ("a", "b"), [], 16, 1)
    loaded.module.config.save_pretrained(tmp_path / "work")
    rebuilt = export.as_rebuilt(loaded, tmp_path / "work")
    found, expected = (Layout(module) for module in (rebuilt.module, loading.rebuild_model(tmp_path / "work")))
    assert vars(found) == vars(expected)
    values = loaded.module.state_dict()
    assert rebuilt.module.state_dict().keys() == values.keys()
    for name, tensor in rebuilt.module.state_dict().items():
        assert tensor.data_ptr() == values[name].data_ptr(), "shared, not copied"


def test_the_rebuilt_module_gets_integer_buffers_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norm, fresh = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
    norm.num_batches_tracked.fill_(9)
    monkeypatch.setattr(export, "rebuild_model", lambda folder: fresh)
    rebuilt = export.as_rebuilt(loading.LoadedModel(norm, None, []), tmp_path)
    assert rebuilt.module is fresh
    assert fresh.num_batches_tracked == 9
    monkeypatch.setattr(export, "rebuild_model", lambda folder: torch.nn.BatchNorm1d(5, affine=False))
    with pytest.raises(ValueError, match=r"rebuilt from config\.json, it differs in bias, weight"):
        export.as_rebuilt(loading.LoadedModel(norm, None, []), tmp_path)


def fail_to_save(self: Any, *_: Any, **__: Any) -> None:
    raise ValueError("a long\nmessage")


def test_what_would_fail_at_the_end_is_refused_before_training(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"model={small_config.model}: it can't be saved and loaded again "

    def refusal(name: str) -> str:
        (tmp_path / name).mkdir()
        with pytest.raises(UserError) as refused:
            preparation.prepare(Mock(), small_config, str(tmp_path / name))
        assert not (tmp_path / name / "train").exists()
        return str(refused.value)

    with monkeypatch.context() as patch:
        patch.setattr(transformers.PreTrainedModel, "save_pretrained", fail_to_save)
        assert refusal("unsaved").startswith(message + "(ValueError: a long message); ")
    write_folder = export.write_folder
    for number, (file, change, what) in enumerate((
        ("tokenizer.json", lambda text: text.replace("river", "rivet"), "its tokenizer gives other tokens"),
        ("config.json", lambda text: text.replace('"gelu"', '"relu"'), "it gives other logits"),
    )):  # fmt: skip

        def damaged(*args: Any, file: str = file, change: Any = change) -> None:
            write_folder(*args)
            path = args[-1] / file
            path.write_text(change(path.read_text()))

        monkeypatch.setattr(export, "write_folder", damaged)
        assert refusal(f"damaged {number}").startswith(f"{message}(ValueError: {what}); ")


def test_an_export_beyond_the_memory_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With adapters, what is merged stands beside a copy in the type of the base, if it is another, of two bytes."""
    cases = (
        ("all", "bfloat16", True, 4),
        ("lora", "float32", True, 4),
        ("lora", "bfloat16", True, 6),
        ("lora", "bfloat16", False, 4),
    )
    for number, (trainable, dtype, merge, of_each) in enumerate(cases):
        config = Config(model=str(builders.pretrained(tmp_path / "saved")), max_seq_len=16, trainable=trainable)
        loaded = loading.load_model(config.model, ("a", "b"), [], 16, 1)
        loaded = loaded._replace(dtype=dtype)
        prepared = tmp_path / str(number)
        prepared.mkdir()
        loaded.module.config.save_pretrained(prepared)
        export.save_tokenizer(loaded, prepared, 16, ["input_ids", "attention_mask"])
        base.freeze(loaded.module, config, loaded.new_parameters)
        needed = of_each * sum(parameter.numel() for parameter in loaded.module.parameters())
        monkeypatch.setattr(host, "free_memory", lambda needed=needed: float(needed))
        with export.export_errors(config.model):
            export.check_export(loaded, prepared, ["river"], None, merge)
        monkeypatch.setattr(host, "free_memory", lambda needed=needed: needed - 1.0)
        refused = pytest.raises(
            UserError, match=r"^export: .* takes 0\.0 GiB in float32, and 0\.0 GiB of memory are free"
        )
        with refused, export.export_errors(config.model):
            export.check_export(loaded, prepared, ["river"], None, merge)


@pytest.mark.parametrize(("place", "noticed"), [(0, True), (99, True), (100, False), (130, False)])
@pytest.mark.parametrize("longest", [True, False])
def test_the_first_hundred_texts_are_tried_and_the_two_longest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int, noticed: bool, longest: bool
) -> None:
    """A word that the exported tokenizer lacks stands in one text alone."""
    config = Config(model=str(builders.pretrained(tmp_path / "saved")), max_seq_len=16)
    loaded = loading.load_model(config.model, ("a", "b"), [], 16, 1)
    (tmp_path / "prepared").mkdir()
    loaded.module.config.save_pretrained(tmp_path / "prepared")
    export.save_tokenizer(loaded, tmp_path / "prepared", 16, ["input_ids", "attention_mask"])
    write_folder = export.write_folder

    def damaged(module: Any, prepared: Path, target: Path) -> None:
        write_folder(module, prepared, target)
        path = target / "tokenizer.json"
        path.write_text(path.read_text().replace("river", "rivet"))

    texts = ["engine wheel"] * 140
    texts[place] = "river engine wheel" if longest else "river"
    export.check_export(loaded, tmp_path / "prepared", texts, None)
    monkeypatch.setattr(export, "write_folder", damaged)
    expected = pytest.raises(ValueError, match="its tokenizer gives other tokens")
    with expected if noticed or longest else contextlib.nullcontext():
        export.check_export(loaded, tmp_path / "prepared", texts, None)


def test_the_saved_tokenizer_names_no_file_of_this_machine(tmp_path: Path) -> None:
    loaded = loading.load_model(str(builders.pretrained(tmp_path / "saved")), ("a", "b"), [], 16, 1)
    (tmp_path / "words.txt").write_text("river")
    loaded.tokenizer.init_kwargs |= {"words_file": str(tmp_path / "words.txt"), "remark": "/river/stone"}
    (tmp_path / "prepared").mkdir()
    export.save_tokenizer(loaded, tmp_path / "prepared", 16, ["input_ids"])
    settings = json.loads((tmp_path / "prepared" / "tokenizer_config.json").read_text())
    assert "words_file" not in settings
    assert settings["remark"] == "/river/stone", "there is no such file"
