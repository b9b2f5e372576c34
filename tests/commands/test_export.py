"""`export` writes the model of any checkpoint: on disk, in an object store, with the tiny model's own vocabulary."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import fsspec
import peft
import pytest
import torch
import transformers

from scaling_fl import state_file
from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.commands.export import export
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.server_state import parameters
from scaling_fl.federated.site_state import tensor_name
from scaling_fl.models import base, loading
from scaling_fl.models.flat_parameters import FlatModel, Layout
from scaling_fl.models.selection import personal_positions
from scaling_fl.runtime import launcher
from tests import builders
from tests.commands import test_evaluate
from tests.conftest import ObjectStore
from tests.models import architectures


def test_a_checkpoint_in_an_object_store_is_exported_beside_it(
    job: tuple[Config, Any], object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, module = job
    for name, value in object_store.environ.items():
        monkeypatch.setenv(name, value)
    url = f"{object_store.bucket}/jobs/news"
    source = Path(str(config.checkpoints_dir)) / "round-000007.safetensors"
    object_store.fs.put_file(str(source), f"{url}/{source.name}")
    export(MagicMock(), Config(checkpoint=f"{url}/{source.name}"))
    fs, path = fsspec.url_to_fs(f"{url}/model-round-000007")
    fs.get(path, str(tmp_path / "fetched"), recursive=True)
    _same(tmp_path / "fetched", module)


def test_the_tiny_model_is_exported_with_the_vocabulary_of_its_data(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(small_config, model="tiny")
    store = _start(config, tmp_path / "work")
    (tmp_path / "new.csv").write_text("topic,body\nclass 1,river\nclass 2,stone\n")
    other = Config(checkpoints_dir=config.checkpoints_dir, job_name="j", test_path=str(tmp_path / "new.csv"))
    title = f"task csv, {tmp_path}/new.csv: 2 test rows; max_seq_len=16"
    assert title in test_evaluate.lines_of(other), "the vocabulary is that of the job's own data"
    # The data have moved since.
    moved = {}
    for key in ("train_path", "test_path"):
        moved[key] = str(Path(getattr(config, key)).rename(tmp_path / f"moved-{key}.csv"))
    typed = Config.from_mapping({"checkpoints_dir": config.checkpoints_dir, "job_name": "j"} | moved)
    export(MagicMock(), typed)
    exported = Path(store.url) / "model-round-000004"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (exported / file).read_bytes() == (tmp_path / "work" / "model" / file).read_bytes()
    Path(moved["train_path"]).write_text("topic,body\nclass 0,a\nclass 1,b\nclass 2,c\n")
    with pytest.raises(UserError, match="the data have changed since the job started"):
        export(MagicMock(), typed)


@pytest.mark.parametrize(
    ("kind", "side", "says"), [("bert", "right", False), ("xlnet", "left", False), ("fnet", "right", True)]
)
def test_an_exported_model_says_how_its_texts_are_padded(
    small_config: Config, tmp_path: Path, kind: str, side: str, says: bool
) -> None:
    architectures.build(kind).save_pretrained(tmp_path / kind)
    builders.tokenizer().save_pretrained(tmp_path / kind)
    store = _start(dataclasses.replace(small_config, model=str(tmp_path / kind)), tmp_path / "work")
    export(MagicMock(), Config(checkpoints_dir=store.url))
    exported = Path(store.url) / "model-round-000004"
    assert transformers.AutoTokenizer.from_pretrained(exported).padding_side == side
    assert ('padding="max_length", max_length=16' in (exported / "README.md").read_text()) == says


@pytest.mark.parametrize(
    ("keys", "sites"),
    [
        ({}, ["| sites | 2 |"]),
        ({"num_sites": 5}, ["| sites | 5 |"]),
        ({"partition": "column", "partition_column": "town"}, []),  # as many as the data have towns, which aren't read
    ],
)
def test_the_card_names_the_number_of_sites_if_it_is_known(
    small_config: Config, tmp_path: Path, keys: dict[str, Any], sites: list[str]
) -> None:
    store = _start(small_config, tmp_path / "work", keys)
    export(MagicMock(), Config(checkpoints_dir=store.url))
    card = (Path(store.url) / "model-round-000004" / "README.md").read_text()
    assert [row for row in card.splitlines() if row.startswith("| sites |")] == sites


def _start(config: Config, work: Path, keys: dict[str, Any] | None = None) -> CheckpointStore:
    """The checkpoints of a job with the parameters it starts with, saved as those of round 4 of a job with `keys`."""
    work.mkdir()
    plan = launcher.prepare(config, str(work), lambda event: None)
    plan = dataclasses.replace(plan, config=dataclasses.replace(config, **keys or {}))
    store = CheckpointStore(str(config.checkpoints_dir))
    store.probe()
    store.save(4, state_file.read_state(work / "state.safetensors")[0], checkpoint_header(plan, {}, None))
    return store


def _same(folder: Path, module: Any) -> None:
    found = transformers.AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    expected = module.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    text = transformers.AutoTokenizer.from_pretrained(folder)("river stone", return_tensors="pt")
    assert text["input_ids"].shape[1] > 2


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({"personal": "head"}, "personal"),
        ({"ditto_lambda": 0.5, "site_test": "held_back"}, "ditto"),
        ({"baseline": "local_only"}, "params"),
    ],
)
def test_the_own_model_of_a_site_is_exported_on_request(
    small_config: Config, tmp_path: Path, keys: dict[str, Any], kept: str
) -> None:
    """A site's whole parameters; for FedPer the server's, less what the site keeps of its head."""
    config = dataclasses.replace(small_config, **keys)
    (tmp_path / "work").mkdir()
    plan = launcher.prepare(config, str(tmp_path / "work"), lambda event: None)
    tensors = dict(state_file.read_state(tmp_path / "work" / "state.safetensors")[0])
    module = transformers.AutoModelForSequenceClassification.from_config(
        transformers.AutoConfig.from_pretrained(tmp_path / "work" / "model")
    )
    layout = Layout(module)
    model = FlatModel(module, torch.zeros(layout.size))
    model.fill(model.flat, parameters(tensors))
    if kept == "personal":
        at = personal_positions(layout, "head")
        own = torch.randn(len(at))
        model.flat[at] -= own
    else:
        model.flat += torch.randn(layout.size)
        own = model.flat.clone()
    tensors |= {tensor_name(1, kept): own.numpy(), tensor_name(0, kept): own.numpy() * 0}
    store = CheckpointStore(str(config.checkpoints_dir))
    store.probe()
    store.save(4, tensors, checkpoint_header(plan, {"validation.accuracy": 0.75}, None))
    typed = {"checkpoints_dir": config.checkpoints_dir, "job_name": "j"}
    export(MagicMock(), Config.from_mapping(typed | {"site": 1}))
    folder = Path(store.url) / "model-round-000004-site-1"
    _same(folder, module.eval())
    assert "## Results" not in (folder / "README.md").read_text(), "they are another model's"
    path, table = f"{store.url}/round-000004.safetensors", tmp_path / "own.csv"
    lines = test_evaluate.lines_of(Config(checkpoint=path, site=1, csv_path=str(table)))
    assert any("own model of site 1" in line for line in lines)
    test_evaluate.check(lines, table, module, Path(str(config.test_path)))
    with pytest.raises(UserError, match=r"site=2: .* has no own model of this site; it has those of the sites 0, 1"):
        export(MagicMock(), Config.from_mapping(typed | {"site": 2}))
    if config.has_global_model:
        export(MagicMock(), Config.from_mapping(typed))
        card = (Path(store.url) / "model-round-000004" / "README.md").read_text()
        assert "## Results after round 4\n\n| metric | value |\n| --- | --- |\n| validation.accuracy | 0.7500 |" in card
    else:
        with pytest.raises(UserError, match=r"has no global model; add site=… for the own model of a site"):
            export(MagicMock(), Config.from_mapping(typed))


def test_a_site_s_own_adapters_are_exported_with_what_it_shares(small_config: Config, tmp_path: Path) -> None:
    """FedSA-LoRA: A is the server's; B and the head are the site's. Merged, and as peft loads them."""
    keys = {"trainable": "lora", "lora_rank": 2, "lora_aggregation": "share_a", "site_test": "held_back"}
    config = Config.from_mapping(small_config.to_mapping() | keys)
    (tmp_path / "work").mkdir()
    plan = launcher.prepare(config, str(tmp_path / "work"), lambda event: None)
    tensors = dict(state_file.read_state(tmp_path / "work" / "state.safetensors")[0])
    module = loading.rebuild_model(tmp_path / "work" / "model")
    base.attach(tmp_path / "work", module, config, plan.new_parameters)
    layout = Layout(module)
    model = FlatModel(module, torch.zeros(layout.size))
    model.fill(model.flat, parameters(tensors))
    own = torch.randn(len(at := personal_positions(layout, str(config.personal))))
    model.flat[at] -= own
    store = CheckpointStore(str(config.checkpoints_dir))
    store.probe()
    store.save(4, tensors | {tensor_name(1, "personal"): own.numpy()}, checkpoint_header(plan, {}, None))
    export(MagicMock(), Config(checkpoints_dir=config.checkpoints_dir, job_name="j", site=1))

    folder, load = (
        Path(store.url) / "model-round-000004-site-1",
        transformers.AutoModelForSequenceClassification.from_pretrained,
    )
    adapted = peft.PeftModel.from_pretrained(load(config.model, num_labels=len(plan.label_names)), folder / "adapter")
    ids = torch.arange(4, 20).view(2, 8)
    with torch.inference_mode():
        expected = module.eval()(input_ids=ids).logits
        for found in (load(folder), adapted):
            torch.testing.assert_close(found.eval()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        model.flat[at] += own
        assert (module(input_ids=ids).logits - expected).abs().max() > 0.1, "its own part counts"


def test_sites_without_own_models_are_refused(job: tuple[Config, Any]) -> None:
    config, _ = job
    with pytest.raises(UserError, match="site=0: the sites of this job have no models of their own; leave out site"):
        export(MagicMock(), Config(checkpoints_dir=config.checkpoints_dir, job_name="j", site=0))
