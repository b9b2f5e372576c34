import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch._inductor.config
import transformers

from scaling_fl.checkpoint.header import checkpoint_header
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.config.schema import Config
from scaling_fl.data import token_store
from scaling_fl.data.tasks import csv
from scaling_fl.data.token_store import TokenStore
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.worker_sites import Shards
from scaling_fl.models import probe
from scaling_fl.runtime import launcher, token_files
from scaling_fl.runtime import preparation as prepare_module
from scaling_fl.state_file import read_state
from scaling_fl.tracking.round_progress import RoundProgress
from tests import builders
from tests.models import architectures


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launcher.prepare(config, str(folder), lambda event: None)


def test_the_plan_tells_what_was_found(small_config: Config, tmp_path: Path) -> None:
    plan = prepare(small_config, tmp_path / "work")
    assert (plan.round, plan.finished, plan.threads, plan.devices) == (0, False, 1, ("cpu", "cpu"))
    assert (plan.shard_sizes, plan.num_train, plan.num_test) == ((21, 20), 41, 9)
    assert plan.label_names == ("class 0", "class 1", "class 2")
    assert plan.new_parameters == ("classifier.bias", "classifier.weight")
    unequal = dataclasses.replace(plan, shard_sizes=(37, 4))
    assert [unequal.step_range(site) for site in (0, 1)] == [(5, 5), (1, 1)], "in batches of 8"
    assert RoundProgress(plan, 0).evaluation_steps == 1
    shards = Shards(tmp_path / "work")
    assert sorted(np.concatenate([shards[0], shards[1]]).tolist()) == list(range(41))


def test_the_plan_counts_every_label_at_each_site_also_those_that_it_lacks(
    small_config: Config, tmp_path: Path
) -> None:
    plan = prepare(dataclasses.replace(small_config, partition="by_label", sites_per_round=2), tmp_path / "work")
    _, labels = builders.texts_and_labels(41)
    ordered = np.sort(labels)
    expected = [[int((part == label).sum()) for label in range(3)] for part in (ordered[:21], ordered[21:])]
    assert expected[0][2] == 0 == expected[1][0]
    assert [list(counts) for counts in plan.label_counts] == expected
    shares = [np.array([count for count in counts if count]) / sum(counts) for counts in expected]
    assert plan.shard_entropies == pytest.approx([-float((share * np.log2(share)).sum()) for share in shares])
    assert plan.shard_entropies[0] != pytest.approx(plan.shard_entropies[1])


def test_the_plan_tells_what_is_trained_and_what_sites_test_by_themselves(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, trainable="head", site_test="held_back", site_test_fraction=0.12)
    plan = prepare(config, tmp_path / "work")
    module = transformers.AutoModelForSequenceClassification.from_pretrained(config.model, num_labels=3)
    assert plan.num_parameters == sum(parameter.numel() for parameter in module.parameters())
    assert plan.num_trained == 3 * module.config.hidden_size + 3, "of the classifier alone"
    # 0.12 × 21 = 2.52, and 0.12 × 20 = 2.4
    assert (plan.site_test_sizes, plan.shard_sizes, plan.num_train) == ((3, 2), (18, 18), 36)


def test_held_back_rows_that_sites_train_on_are_noted(small_config: Config, tmp_path: Path) -> None:
    path = tmp_path / "twice.csv"
    path.write_text("topic,body\n" + "class 0,river\nclass 1,engine\n" * 20)
    config = dataclasses.replace(small_config, train_path=str(path), test_path=str(path), validation_fraction=0.2)
    assert (
        "held-back rows that repeat a training text: 8 of 8 (100.0%); most of them do, so held-back metrics say little about "
        "new texts: remove duplicates from the training file"
    ) in prepare(config, tmp_path / "work").notes


def test_a_model_that_cannot_recompute_activations_is_refused(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.BertForSequenceClassification, "supports_gradient_checkpointing", False)
    (tmp_path / "work").mkdir()
    config = dataclasses.replace(small_config, gradient_checkpointing=True)
    with pytest.raises(
        UserError, match=r"^gradient_checkpointing=True: BertForSequenceClassification doesn't support it"
    ):
        prepare_module.prepare(Mock(), config, str(tmp_path / "work"))


def test_the_moments_of_a_server_optimiser_start_where_its_paper_says(small_config: Config, tmp_path: Path) -> None:
    """Reddi et al. 2021, algorithm 2: v₋₁ ≥ τ², and τ = 0.001. A resumed job keeps the v of its checkpoint."""
    config = dataclasses.replace(small_config, server_optimiser="adam")
    plan = prepare(config, tmp_path / "new")
    tensors, _ = read_state(tmp_path / "new" / "state.safetensors")
    starts = {name: np.unique(array) for name, array in tensors.items() if name.startswith("server_moment_")}
    assert len(starts) == 2 * sum(not name.startswith("server_moment_") for name in tensors)
    for name, values in starts.items():
        assert values == pytest.approx([1e-6 if name.startswith("server_moment_1.") else 0.0])
    earlier = {name: array * 0 if name.startswith("server_moment_") else array for name, array in tensors.items()}
    CheckpointStore(str(tmp_path / "out")).save(1, earlier, checkpoint_header(plan, {}, None))
    assert prepare(dataclasses.replace(config, num_rounds=2), tmp_path / "resumed").reported
    resumed, _ = read_state(tmp_path / "resumed" / "state.safetensors")
    assert not any(resumed[name].any() for name in starts)


def test_a_damaged_checkpoint_is_set_aside_unless_the_job_is_refused(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, num_rounds=2)
    launcher.train(prepare(config, tmp_path / "first"), lambda event: None)
    newest = tmp_path / "out" / "round-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"seed was 20210201, is now 5"):
        prepare(dataclasses.replace(config, seed=5), tmp_path / "second")
    assert newest.exists()
    plan = prepare(config, tmp_path / "third")
    assert (plan.round, plan.finished) == (1, False)
    assert any(note.startswith("round-000002.safetensors is damaged (") for note in plan.notes)
    assert not newest.exists()
    assert (tmp_path / "out" / "round-000002.safetensors.damaged").exists()


@pytest.mark.parametrize(("reported", "known"), [(True, ["1", "2", "3"]), (False, ["1", "2"])])
def test_a_resumed_job_knows_the_results_of_every_round_that_was_reported(
    small_config: Config, tmp_path: Path, reported: bool, known: list[str]
) -> None:
    """The checkpoint of round 3 has its own results beside those of the rounds before, final or not."""
    plan = prepare(small_config, tmp_path / "new")
    tensors, _ = read_state(tmp_path / "new" / "state.safetensors")
    results: dict[str, dict[str, float | str]] = {str(n): {"train.loss": 1 / 2**n} for n in (1, 2, 3)}
    before = {name: results[name] for name in ("1", "2")}
    header = checkpoint_header(plan, results["3"], None, reported, before)
    CheckpointStore(str(tmp_path / "out")).save(3, tensors, header)
    resumed = prepare(dataclasses.replace(small_config, num_rounds=5), tmp_path / "resumed")
    assert (resumed.round, resumed.reported, resumed.metrics) == (3, reported, results["3"])
    assert resumed.history == {name: results[name] for name in known}


def test_a_job_with_other_threads_or_versions_goes_on_and_says_so(small_config: Config, tmp_path: Path) -> None:
    plan = prepare(small_config, tmp_path / "first")
    launcher.train(plan, lambda event: None)
    folder = CheckpointStore(str(tmp_path / "out"))
    tensors, header = read_state(tmp_path / "out" / "round-000001.safetensors")
    header["environment"]["torch"] = "1.0"
    header["threads"] = 7
    folder.save(1, tensors, header)

    again = dataclasses.replace(small_config, num_rounds=2)
    plan = prepare(again, tmp_path / "second")
    assert (plan.round, plan.threads) == (1, 1)
    assert any("threads_per_site was 7, is now 1" in note for note in plan.notes)
    assert any("another environment (torch 1.0 → " in note for note in plan.notes)
    plan = prepare(dataclasses.replace(again, threads_per_site=None), tmp_path / "third")
    assert plan.threads == 7, "if threads_per_site is not set, a resume uses the checkpoint's"


@pytest.mark.parametrize(("kind", "typed"), [("bert", True), ("distilbert", False)])
def test_pairs_have_token_types_for_models_that_know_them(
    small_config: Config, tmp_path: Path, kind: str, typed: bool
) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("one,two,kind\nriver stone,engine,a\nforest,,b\n")
    config = dataclasses.replace(
        small_config, train_path=str(path), test_path=str(path), text_column="one", text_pair_column="two",
        label_column="kind", model=str(builders.pretrained(tmp_path / kind, kind)),
    )  # fmt: skip
    prepare(config, tmp_path / "work")
    for name in ("train", "test"):
        store = TokenStore(tmp_path / "work" / name, 0)
        assert store.lengths.tolist() == [6, 4], "[CLS] river stone [SEP] engine [SEP]; [CLS] forest [SEP] [SEP]"
        assert (store.types is not None) is typed


def test_a_second_job_on_the_same_data_does_not_tokenise_again(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str] = []

    def prepare_it(name: str, **changes: object) -> int:
        texts.clear()
        config = dataclasses.replace(small_config, checkpoints_dir=None, **changes)  # type: ignore[arg-type]
        (tmp_path / name).mkdir()
        launcher.prepare(config, str(tmp_path / name), lambda event: texts.append(event.get("text", "")))
        return sum(text.startswith("tokenising") for text in texts)

    assert prepare_it("first", max_seq_len=13) == 2
    assert prepare_it("again", max_seq_len=13, seed=5, site_ids=(-1,), batch_size=3) == 0
    assert prepare_it("shorter", max_seq_len=12) == 2
    assert prepare_it("part", max_seq_len=13, max_test_examples=5) == 1, "the test texts are others"
    first, again = (TokenStore(tmp_path / name / "train", 0) for name in ("first", "again"))
    assert (first.tokens == again.tokens).all()


def test_compile_without_a_compiler_is_refused(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))  # no cached compilation
    (tmp_path / "work").mkdir()
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UserError, match=r"compile=True: torch can't compile for cpu \(.*no-such-compiler.*g\+\+"),
    ):
        prepare_module.prepare(Mock(), dataclasses.replace(small_config, compile=True), str(tmp_path / "work"))


@pytest.mark.parametrize("far", [True, False])
def test_only_slow_steps_without_progress_count_as_waiting(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: bool
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # an earlier test may have filled the cache
    send, waited = Mock(), dict[str, bool]()

    def watch(owner: Any, name: str) -> None:
        plain = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            waited[name] = send.waiting is True
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in (
        (csv, "load"), (prepare_module, "make_shards"),
        (CheckpointStore, "fetch_newest"), (prepare_module.token_store, "write"),
    ):  # fmt: skip
        watch(owner, name)
    config = small_config
    if far:
        config = dataclasses.replace(
            config, train_path=f"file://{config.train_path}", checkpoints_dir=f"memory://{tmp_path}"
        )
    (tmp_path / "work").mkdir()
    prepare_module.prepare(send, config, str(tmp_path / "work"))
    assert waited == {"load": far, "make_shards": False, "fetch_newest": far, "write": False}
    assert send.waiting is False
    watch(prepare_module.loading, "load_model")
    (tmp_path / "again").mkdir()
    prepare_module.prepare(send, config, str(tmp_path / "again"))
    assert waited["load_model"], "a model may come from the hub"


def test_truncated_texts_are_counted_among_those_that_sites_train_on(tmp_path: Path) -> None:
    """Texts of 3, 4, 5 and 6 tokens, cut at 5; the last is held back."""
    texts = ["river", "river stone", "river stone forest", "river stone forest meadow"]
    token_store.write(tmp_path / "train", builders.tokenizer(), texts, np.zeros(4, np.int64), 5)
    assert token_files.num_truncated(tmp_path, np.array([0, 1, 2]), 5) == 1
    assert token_files.num_truncated(tmp_path, np.array([0, 1, 2, 3]), 5) == 2
    assert token_files.num_truncated(tmp_path, np.array([0, 1]), 5) == 0


def test_automatic_precision_falls_back_and_a_chosen_one_is_refused(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeBERTa can't run under bf16 autocast."""
    model = tmp_path / "deberta"
    architectures.build("deberta").save_pretrained(model)
    builders.tokenizer().save_pretrained(model)
    config = dataclasses.replace(small_config, model=str(model), checkpoints_dir=None)
    with pytest.raises(UserError, match=rf"precision=bf16: model={model} fails in it \(.*\); set precision=fp32"):
        prepare(dataclasses.replace(config, precision="bf16"), tmp_path / "refused")

    events: list[dict[str, Any]] = []
    monkeypatch.setattr(prepare_module, "precision", lambda config, device: "bf16")  # as on a GPU
    (tmp_path / "work").mkdir()
    prepare_module.prepare(Mock(side_effect=events.append), config, str(tmp_path / "work"))
    plan = events[-1]["plan"]
    assert plan.environment["precision"] == "fp32"
    assert plan.config.precision == "auto", "the job can be resumed with the same command"
    assert any("precision=bf16" in note and note.endswith("; fp32 is used") for note in plan.notes)


def test_a_model_that_works_in_no_precision_is_refused(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are finite, but their squares are not."""
    model = transformers.AutoModel.from_pretrained(small_config.model)
    torch.nn.init.constant_(model.embeddings.word_embeddings.weight, 1e30)
    model.save_pretrained(small_config.model)
    monkeypatch.setattr(prepare_module, "precision", lambda config, device: "bf16")  # as on a GPU
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"precision=fp32: model=.* \(FloatingPointError: .*\); use another model$"):
        prepare_module.prepare(Mock(), small_config, str(tmp_path / "work"))


def test_a_model_without_deterministic_kernels_is_refused_before_training(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial runs with the settings of the workers, which only a GPU needs."""

    def set_up(device: torch.device, config: Config) -> None:
        assert device == torch.device("cpu")
        torch.use_deterministic_algorithms(config.deterministic)

    check_step = probe.check_step

    def lacking(*arguments: Any, **more: Any) -> None:
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        check_step(*arguments, **more)

    monkeypatch.setattr(prepare_module.gpus, "set_up", set_up)
    monkeypatch.setattr(probe, "check_step", lacking)
    config = dataclasses.replace(small_config, deterministic=True)
    (tmp_path / "work").mkdir()
    try:
        with pytest.raises(
            UserError, match=r"a deterministic implementation\); use another model, or leave out determin"
        ):
            prepare_module.prepare(Mock(), config, str(tmp_path / "work"))
    finally:
        torch.use_deterministic_algorithms(False)
    prepare_module.prepare(Mock(), small_config, str(tmp_path / "work"))
