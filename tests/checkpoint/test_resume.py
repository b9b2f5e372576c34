"""A resumed job is bitwise identical to an uninterrupted one: states, metrics, and which checkpoints are kept."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.runtime import launcher
from scaling_fl.state_file import read_state
from tests import builders
from tests.checkpoint.jobs import JOBS, MORE_JOBS


def train(config: Config, work: Path) -> dict[int, dict[str, Any]]:
    """Prepare and train; return the metrics of each round, without durations."""
    seen: dict[int, dict[str, Any]] = {}

    def keep(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            seen[event["round"]] = {
                name: value
                for name, value in event["metrics"].items()
                if not name.startswith(("seconds.", "examples_per_second", "tokens_per_second"))
            }

    work.mkdir()
    launcher.train(launcher.prepare(config, str(work), lambda event: None), keep)
    return seen


@pytest.mark.parametrize(
    ("sites", "iid", "schedule", "more"),
    [*JOBS, *(pytest.param(*job, marks=pytest.mark.thorough) for job in MORE_JOBS)],
)
def test_a_resumed_job_is_identical_to_an_uninterrupted_one(
    small_config: Config, tmp_path: Path, sites: int, iid: bool, schedule: str, more: dict[str, Any]
) -> None:
    builders.write_csv(tmp_path / "train.csv", 43)  # unequal shards
    config = dataclasses.replace(
        small_config, site_ids=(-1,) * sites, iid_split=iid, lr_schedule=schedule, warmup=1.5, num_rounds=4,
        learning_rate=0.01, keep_checkpoints=0, keep_best="validation.loss", **more,
    )  # fmt: skip
    undisturbed = train(config, tmp_path / "first")
    learning_rates = [results["learning_rate"] for results in list(undisturbed.values())[1:]]
    assert len(set(learning_rates)) == (2 if schedule == "constant" else 4), (
        "the schedule continues across the interruption"
    )

    again = dataclasses.replace(config, checkpoints_dir=str(tmp_path / "again"), keep_checkpoints=1)
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "out" / "round-000002.safetensors", tmp_path / "again")
    resumed = train(again, tmp_path / "second")
    assert resumed == {3: undisturbed[3], 4: undisturbed[4]}
    whole, header = read_state(tmp_path / "out" / "round-000004.safetensors")
    parts, resumed_header = read_state(tmp_path / "again" / "round-000004.safetensors")
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        assert array.tobytes() == parts[name].tobytes(), name
    best = min((1, 2, 3, 4), key=lambda round_: undisturbed[round_]["validation.loss"])
    assert header["best"] == resumed_header["best"]
    assert header["best"]["round"] == best
    assert CheckpointStore(str(tmp_path / "again")).rounds() == sorted({4, best} - {1}, reverse=True)


def test_a_cohort_of_all_sites_keeps_the_meaning_it_started_with(small_config: Config, tmp_path: Path) -> None:
    """Earlier versions took all sites, weighted by examples, for by_examples; their headers have no `cohort_rules`."""
    config = dataclasses.replace(small_config, sampling="by_examples", participation=1.0)
    plan = prepare(config, tmp_path / "first")
    assert not plan.one_site_per_worker
    tensors, _ = read_state(tmp_path / "first" / "state.safetensors")
    header = checkpoint_header(plan, {}, None)
    store = CheckpointStore(str(tmp_path / "out"))
    uniform = dataclasses.replace(config, sampling="uniform")
    store.save(1, tensors, {key: value for key, value in header.items() if key != "cohort_rules"})
    with pytest.raises(
        UserError, match=r"cohort of all 2 sites was not drawn.*; set sampling=uniform to go on as before"
    ):
        prepare(config, tmp_path / "second")
    assert prepare(uniform, tmp_path / "third").round == 1
    store.save(1, tensors, header)
    assert prepare(config, tmp_path / "fourth").round == 1
    with pytest.raises(UserError, match="sampling was 'by_examples', is now 'uniform'"):
        prepare(uniform, tmp_path / "fifth")


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reverse_vocabulary(tokenizer: dict[str, Any]) -> None:
    vocabulary, special = tokenizer["model"]["vocab"], {token["content"] for token in tokenizer["added_tokens"]}
    words = [word for word in vocabulary if word not in special]
    vocabulary.update(zip(words, reversed([vocabulary[word] for word in words]), strict=True))


def change_weights(folder: Path) -> None:
    weights = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    name = min(weights)
    safetensors.numpy.save_file(weights | {name: weights[name] + 1}, folder / "model.safetensors", {"format": "pt"})


def change_tokens(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", reverse_vocabulary)


def increase_dropout(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(hidden_dropout_prob=0.3))


@pytest.fixture
def started(small_config: Config, tmp_path: Path) -> Config:
    """A job of two rounds, after the first."""
    train(small_config, tmp_path / "first")
    shutil.copytree(tmp_path / "model", tmp_path / "moved")
    return dataclasses.replace(small_config, num_rounds=2)


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launcher.prepare(config, str(folder), lambda event: None)


@pytest.mark.parametrize("name", ["model", "moved"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_weights, r"digest of the weights was \w{12}…, is now \w{12}…; restore that model"),
        (change_tokens, r"digest of the tokens was \w{12}…, is now \w{12}…; restore that model"),
        (increase_dropout, "hidden_dropout_prob was 0.1, is now 0.3; restore that model"),
    ],
    ids=["weights", "tokens", "architecture"],
)
def test_a_job_resumes_only_with_the_same_model_whatever_its_path(
    started: Config, tmp_path: Path, name: str, change: Callable[[Path], None], message: str
) -> None:
    moved = dataclasses.replace(started, model=str(tmp_path / name))
    assert prepare(moved, tmp_path / "second").round == 1
    change(tmp_path / name)
    last = tmp_path / "out" / "round-000002.safetensors"
    last.write_bytes(b"damaged")
    with pytest.raises(
        UserError, match=f"model={moved.model} differs from the model the job started with .*: {message}"
    ):
        prepare(moved, tmp_path / "third")
    assert last.exists(), "a refusal changes nothing"


def test_a_checkpoint_without_origin_binds_the_job_to_the_models_path(started: Config, tmp_path: Path) -> None:
    tensors, header = read_state(tmp_path / "out" / "round-000001.safetensors")
    del header["origin"]
    CheckpointStore(str(tmp_path / "out")).save(1, tensors, header)
    assert prepare(started, tmp_path / "second").round == 1
    with pytest.raises(UserError, match=r"model was '.*model', is now '.*moved'"):
        prepare(dataclasses.replace(started, model=str(tmp_path / "moved")), tmp_path / "third")
    train(started, tmp_path / "fourth")
    longer = dataclasses.replace(started, num_rounds=3, model=str(tmp_path / "moved"))
    assert prepare(longer, tmp_path / "fifth").round == 2, "a resumed job writes the origin"


def test_a_job_whose_model_is_loaded_with_another_layout_than_it_is_built_resumes(
    small_config: Config, tmp_path: Path
) -> None:
    """RoFormer's table of sines is frozen when it is built, and trainable after loading."""
    model = builders.pretrained(tmp_path / "roformer", "roformer")
    config = dataclasses.replace(small_config, model=str(model), keep_optimiser=True)
    train(config, tmp_path / "first")
    assert prepare(dataclasses.replace(config, num_rounds=2), tmp_path / "second").round == 1
    table = "roformer.encoder.embed_positions.weight"
    tensors, _ = read_state(tmp_path / "out" / "round-000001.safetensors")
    expected = safetensors.numpy.load_file(model / "model.safetensors")[table.removeprefix("roformer.")]
    assert (tensors[table] == expected).all(), "no weight decay on a frozen table"
