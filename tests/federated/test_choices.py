"""Multiple choice and generated examples of whole jobs, against the exported model and transformers alone."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from scaling_fl.config.schema import Config
from scaling_fl.errors import UserError
from scaling_fl.federated import choices, generation, round_evaluation
from scaling_fl.federated.site import Site
from scaling_fl.runtime import launcher
from scaling_fl.tracking.record import Record
from tests import builders
from tests.federated.test_language_model import KEYS, blocks, plain_loss
from tests.federated.training import SHARDS

CHOICES = ["stone", "river stone", "cloud"]
TEMPLATE = "{prompt} : {response}"


def write(path: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    words = ["river", "cloud", "stone"]
    rows = []
    for _ in range(count):
        number = int(rng.integers(3))
        prompt = " ".join([words[number], *rng.choice(words, int(rng.integers(1, 4)))])
        rows.append(
            {"prompt": prompt, "response": CHOICES[number], "options": [CHOICES[i] for i in rng.permutation(3)]}
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def config(small_config: Config, tmp_path: Path) -> Config:
    return dataclasses.replace(
        small_config, task_name="instructions", text_column=None, label_column=None, prompt_template=TEMPLATE,
        train_path=str(write(tmp_path / "train.jsonl", 37, 1)), test_path=str(write(tmp_path / "test.jsonl", 11, 2)),
        choices_column="options", model=str(builders.pretrained(tmp_path / "llama", "llama")), learning_rate=0.01,
        generate_examples=3, partition="sizes", size_skew=0.5, max_seq_len=48,
    )  # fmt: skip


def run(config: Config, work: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    work.mkdir()
    launcher.train(launcher.prepare(config, str(work), lambda event: None), events.append)
    return events


def log_probabilities(model: Any, tokenizer: Any, prompt: str, response: str) -> list[float]:
    """Of the response's tokens and the end token, by the model alone."""
    asked = tokenizer(f"{prompt} : ", add_special_tokens=False)["input_ids"]
    ids = [*tokenizer(f"{prompt} : {response}", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [float(logs[place - 1, ids[place]]) for place in range(len(asked), len(ids))]


def exported(config: Config) -> tuple[Any, Any]:
    folder = f"{config.checkpoints_dir}/model"
    return (
        transformers.AutoModelForCausalLM.from_pretrained(folder).eval(),
        transformers.AutoTokenizer.from_pretrained(folder),
    )


@pytest.mark.parametrize("more", [{}, pytest.param({"trainable": "lora", "lora_rank": 2}, marks=pytest.mark.thorough)])
def test_the_most_probable_choice_is_that_of_the_exported_model(
    config: Config, tmp_path: Path, more: dict[str, Any]
) -> None:
    config = dataclasses.replace(config, **more)
    metrics = [event["metrics"] for event in run(config, tmp_path / "work") if event["event"] == "round"][-1]
    model, tokenizer = exported(config)
    rows = [json.loads(line) for line in Path(str(config.test_path)).read_text().splitlines()]
    hits, hits_per_token = 0, 0
    for row in rows:
        logs = [log_probabilities(model, tokenizer, row["prompt"], choice) for choice in row["options"]]
        whole, per_token = (int(np.argmax([f(of) for of in logs])) for f in (np.sum, np.mean))
        hits += row["options"][whole] == row["response"]
        hits_per_token += row["options"][per_token] == row["response"]
    assert metrics["validation.choice_accuracy"] == pytest.approx(hits / len(rows))
    assert metrics["validation.choice_accuracy_per_token"] == pytest.approx(hits_per_token / len(rows))
    assert 0 < hits < len(rows)


def test_choices_are_tokenised_once(config: Config, tmp_path: Path) -> None:
    def said(name: str, config: Config = config) -> list[str]:
        events: list[dict[str, Any]] = []
        (tmp_path / name).mkdir()
        launcher.prepare(config, str(tmp_path / name), events.append)
        return [event["text"] for event in events if event.get("text", "").startswith("tokenising")]

    write(tmp_path / "train.jsonl", 37, 91)  # texts that no other test has tokenised
    write(tmp_path / "test.jsonl", 11, 92)
    of_choices = "tokenising the choices of 11 test texts"
    assert said("first") == ["tokenising 37 training texts", "tokenising 11 test texts", of_choices]
    assert said("second") == []
    assert len(said("other", dataclasses.replace(config, prompt_template="{prompt} , {response}"))) == 3
    path = Path(str(config.test_path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"options": [*row["options"], "rain"]}) + "\n" for row in rows))
    assert of_choices in said("third")


def test_accuracy_by_the_sum_and_by_the_mean_over_tokens() -> None:
    """Parts of two workers, in the order of their batches; the first of two equal sums is chosen."""

    class Given:
        rows = np.array([0, 0, 1, 1, 1, 2, 2])
        right = np.array([False, True, True, False, False, False, True])

        class store:
            num_predictions = np.array([1, 2, 2, 4, 1, 3, 3])

    sums = np.array([-2.0, -3.0, -6.0, -8.0, -5.0, -4.0, -4.0])
    parts = [(np.array([6, 1, 3]), sums[[6, 1, 3]]), (np.array([0, 2, 4, 5]), sums[[0, 2, 4, 5]])]
    found = choices.accuracies(parts, Given())  # type: ignore[arg-type]
    # Chosen by sum: 0, 4, 5; by mean (−2, −1.5; −3, −2, −5; −4/3, −4/3): 1, 3, 5.
    assert found == {"validation.choice_accuracy": 0.0, "validation.choice_accuracy_per_token": pytest.approx(1 / 3)}


def test_examples_are_what_the_exported_model_writes(config: Config, tmp_path: Path) -> None:
    """Greedily, after the prompt; they come into the record and its artifacts."""
    config = dataclasses.replace(config, learning_rate=0.05, num_rounds=4)
    events = run(config, tmp_path / "work")
    (found,) = [event for event in events if event["event"] == "generations"]
    assert [row["row"] for row in found["rows"]] == [1, 2, 3]
    model, tokenizer = exported(config)
    rows = [json.loads(line) for line in Path(str(config.test_path)).read_text().splitlines()]
    for row, generated in zip(rows, found["rows"], strict=False):
        ids = tokenizer(f"{row['prompt']} : ", add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=128,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        assert generated["generated"] == tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert generated["prompt"] == tokenizer.decode(ids[0])
        expected = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        assert generated["expected"] == tokenizer.decode(expected)
    record = Record()
    record.apply(found | {"time": 1.0})
    again = Record.from_parts({}, {}, {}, {}, record.artifacts())
    assert again.generations == found["rows"]


@pytest.mark.parametrize(
    ("flags", "prompt", "expected"),
    [
        ([0, 0, 1, 1], [10, 11], [12, 13]),
        ([0, 0, 1, 1, 0, 0], [10, 11], [12, 13]),  # the template writes more after the end token
        ([0, 1, 0, 0, 1, 0], [10, 11, 12, 13], [14]),  # the last of two responses
        ([0, 1, 1, 1, 1], [10], [11, 12, 13, 14]),  # of a long conversation, one token of the prompt is left
        ([0, 1], [10], [11]),
    ],
)
def test_the_prompt_ends_where_the_last_response_begins(
    flags: list[int], prompt: list[int], expected: list[int]
) -> None:
    class Test:
        offsets = np.array([0, 2, 2 + len(flags)])
        tokens = np.array([1, 2, *range(10, 10 + len(flags))])
        predicted = np.array([0, 1, *flags], np.uint8)
        num_bytes = np.zeros(2, np.int64)

    found = generation._parts(SimpleNamespace(test=Test), 1)  # type: ignore[arg-type]
    assert [part.tolist() for part in found] == [prompt, expected]
    if flags == [0, 1, 1, 1, 1]:
        Test.num_bytes = np.array([0, 9])
        found = generation._parts(SimpleNamespace(test=Test), 1)  # type: ignore[arg-type]
        assert [part.tolist() for part in found] == [[10, 11], [12, 13, 14]], "the first half of a block of documents"


def test_without_a_global_model_choices_are_the_mean_over_own_models(config: Config, tmp_path: Path) -> None:
    """One site alone is that mean."""
    one = dataclasses.replace(config, num_sites=1, site_ids=(-1,), partition="iid", size_skew=None, generate_examples=0)
    results = {}
    for name, more in (("local", {"baseline": "local_only"}), ("global", {})):
        keys = dataclasses.replace(one, checkpoints_dir=str(tmp_path / name), **more)
        rounds = [event["metrics"] for event in run(keys, tmp_path / f"work-{name}") if event["event"] == "round"]
        results[name] = {key: value for key, value in rounds[-1].items() if "choice" in key}
    assert results["local"] == results["global"]
    assert len(results["local"]) == 2


def test_choices_of_own_models_are_the_mean_over_all_sites(
    alone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over those that took no part in the round, and whatever their sizes."""
    config = Config(num_sites=3, site_ids=(-1,), personal="head", sites_per_round=1)
    worker_sites, collectives, state = alone(config, builders.bert(), SHARDS)
    resident: Any = dataclasses.replace(worker_sites.resident, choices=object())
    state.round = 1
    monkeypatch.setattr(Site, "own_params", lambda self, params: torch.tensor([0.5, 0.75, 0.125])[self.number])
    monkeypatch.setattr(choices, "scored", lambda resident, params, worker, num_workers, given: params)
    monkeypatch.setattr(choices, "accuracies", lambda parts, given: {"validation.choice_accuracy": float(parts[0])})
    found = round_evaluation._on_choices(dataclasses.replace(worker_sites, resident=resident), collectives, state)
    assert found == {"validation.choice_accuracy": pytest.approx(1.375 / 3)}


def test_responses_that_exceed_memory_are_scored_in_parts_and_are_no_steps_of_the_round(
    alone: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.from_mapping(KEYS | {"val_batch_size": 4})
    worker_sites, _, state = alone(config, builders.decoder(), blocks(tmp_path))
    steps, alive = list[None](), list[None]()
    resident = dataclasses.replace(
        worker_sites.resident, on_step=lambda: steps.append(None), on_alive=lambda: alive.append(None)
    )
    store, plain = resident.test, choices.cross_entropy
    given: Any = SimpleNamespace(store=store)

    def small(logits: torch.Tensor, *args: Any, **keywords: Any) -> torch.Tensor:
        if len(logits) > 20:  # four blocks have up to 32 tokens that are predicted
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(logits, *args, **keywords)

    monkeypatch.setattr(choices, "cross_entropy", small)
    rows, sums = choices.scored(resident, state.params, 0, 1, given)
    assert sorted(rows) == list(range(len(store)))
    resident.model.load(state.params)
    for row, found in zip(rows, sums, strict=True):
        with torch.no_grad():
            loss, count = plain_loss(store, resident.model.module, np.array([row]))
        assert found == pytest.approx(-loss.item() * count, rel=1e-4)
    assert (len(steps), len(alive)) == (0, -(-len(store) // 4))


def test_the_given_parameters_write_and_not_those_that_the_model_holds(
    alone: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the model may have held those of a site. Prompts alone show special tokens."""
    monkeypatch.setattr(generation, "_MAX_TOKENS", 6)
    worker_sites, _, state = alone(Config.from_mapping(KEYS), builders.decoder(), blocks(tmp_path))
    words, alive = builders.tokenizer(), list[None]()
    resident = dataclasses.replace(worker_sites.resident, tokenizer=words, on_alive=lambda: alive.append(None))
    rows, params = np.arange(len(resident.test)), state.params.clone()
    others = torch.randn(len(params), generator=torch.Generator().manual_seed(3))
    found = generation.generate(resident, params, rows)
    assert len(alive) == len(rows)
    written = generation.generate(resident, others, rows)
    assert generation.generate(resident, params, rows) == found != written
    assert any(words.eos_token in row["prompt"] for row in found)
    assert not any(words.eos_token in row["expected"] + row["generated"] for row in found)


def test_no_more_examples_are_written_than_there_are(
    alone: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "generate", lambda resident, params, rows: [{"row": int(row) + 1} for row in rows])
    worker_sites, collectives, state = alone(Config(num_sites=3), builders.bert(), SHARDS)
    for asked, written in ((22, 22), (24, 23)):  # of 23 test rows
        resident = dataclasses.replace(worker_sites.resident, config=Config(num_sites=3, generate_examples=asked))
        asking = dataclasses.replace(worker_sites, resident=resident)
        found = round_evaluation._generated(asking, collectives, state)
        assert [row["row"] for row in found] == list(range(1, written + 1))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"options": "yes"}, "row 1, column options: expected a list of two or more different responses"),
        ({"options": ["stone"]}, "expected a list of two or more"),
        ({"options": ["stone", "stone"]}, "expected a list of two or more different"),
        ({"options": ["stone", 3]}, "expected a list of two or more"),
        ({"options": ["cloud", "river"]}, r"row 1, column options: the response 'stone' isn't one of its choices"),
        ({}, "no column options"),
    ],
)
def test_choices_that_are_none_are_refused(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    from scaling_fl.data.task_loader import load_task

    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": "a", "response": "stone"} | row) + "\n")
    keys = {f"{name}_path": str(tmp_path / f"{name}.jsonl") for name in ("train", "test")}
    config = Config.from_mapping({"task_name": "instructions", "site_ids": [-1], "choices_column": "options"} | keys)
    with pytest.raises(UserError, match=message):
        load_task(config)


def test_only_the_rows_that_are_tested_need_choices(config: Config, tmp_path: Path) -> None:
    """From files and from a data set; training rows that become test rows need them too."""
    import datasets

    from scaling_fl.data.task_loader import load_task

    given = load_task(config)
    rows = [json.loads(line) for line in Path(str(config.train_path)).read_text().splitlines()]
    without = tmp_path / "without.jsonl"
    without.write_text("".join(json.dumps({"prompt": r["prompt"], "response": r["response"]}) + "\n" for r in rows))
    of_files = dataclasses.replace(config, train_path=str(without))
    splits = {
        name: datasets.Dataset.from_json(path)
        for name, path in (("train", str(without)), ("test", str(config.test_path)))
    }
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "hub")
    of_hub = dataclasses.replace(config, train_path=None, test_path=None, dataset=str(tmp_path / "hub"))
    rows[0]["options"] = ["one"]  # and none has to be right
    (tmp_path / "wrong.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for lacking in (of_files, of_hub, dataclasses.replace(config, train_path=str(tmp_path / "wrong.jsonl"))):
        task = load_task(lacking)
        assert task.test.choices == given.test.choices is not None
        assert task.train.choices is None
        assert task.train.texts == given.train.texts
    with pytest.raises(UserError, match=r"choices_column='options': .* has no column options"):
        load_task(dataclasses.replace(of_files, test_path=None, test_fraction=0.2))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"weighting": "tokens"}, "weighting=tokens: task_name=csv classifies texts, and predicts no tokens"),
        ({"generate_examples": 2}, "generate_examples=2: task_name=csv classifies texts"),
        ({"choices_column": "body"}, "choices_column='body': task_name=csv doesn't use it"),
    ],
)
def test_classifiers_have_none_of_these(small_config: Config, keys: dict[str, Any], message: str) -> None:
    from scaling_fl.data.task_loader import load_task

    with pytest.raises(UserError, match=message):
        load_task(dataclasses.replace(small_config, **keys))


def test_the_best_choices_need_choices() -> None:
    with pytest.raises(
        UserError, match=r"keep_best=validation.choice_accuracy: there are no choices; set choices_column"
    ):
        Config.from_mapping({"keep_best": "validation.choice_accuracy"})


def test_sites_are_weighted_by_the_tokens_that_are_predicted(alone: Callable[..., Any], tmp_path: Path) -> None:
    """Of three sites with one, two and three documents of different lengths."""
    config = Config.from_mapping(KEYS | {"weighting": "tokens", "sites_per_round": 2})
    shards = blocks(tmp_path)
    worker_sites, _, _ = alone(config, builders.decoder(), shards)
    store = worker_sites.resident.train
    lengths = [sum(int(store.lengths[row]) - 1 for row in shard) for shard in shards]
    found = worker_sites.cohort(1)
    assert len(found) == 2
    assert found == pytest.approx({site: lengths[site] / sum(lengths[other] for other in found) for site in found})
    plain = dataclasses.replace(worker_sites, resident=dataclasses.replace(worker_sites.resident, config=Config()))
    assert plain.tokens is None
