"""The coordinator alone: what it saves, and when, from a server state in this process."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.federated.best_round import BestRound
from scaling_fl.federated.server_state import ServerState
from scaling_fl.federated.site_state import SiteStateStore
from scaling_fl.runtime.coordinator import Coordinator
from scaling_fl.state_file import write_state
from tests import builders
from tests.tracking import builders as tracking_builders

RESULTS = {"validation.loss": 0.5, "validation.accuracy": 0.25}


class Events(list[dict[str, Any]]):
    """Keeps what is sent; `ended` is set at the end of a stop."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def __call__(self, event: dict[str, Any]) -> None:
        self.append(event)
        if event["event"] in ("stopped", "failed"):
            self.ended.set()

    def progress(self) -> None:
        pass


Build = Callable[..., tuple[Coordinator, ServerState, Events, CheckpointStore]]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def build(
        round_: int = 0, store: SiteStateStore | None = None, of_plan: dict[str, Any] | None = None, **keys: Any
    ) -> Any:
        model, events = builders.flat_model(), Events()
        block = torch.stack([model.flat.clone(), torch.full_like(model.flat, 0.5)])
        state = ServerState(block[0], model.layout.trained, round_, moments=block[1:])
        plan = tracking_builders.plan(str(tmp_path / "out"), round_)
        config = dataclasses.replace(plan.config, num_rounds=9, **keys)
        plan = dataclasses.replace(plan, config=config, **of_plan or {})
        folder = CheckpointStore(str(tmp_path / "out"))
        folder.probe()
        return Coordinator(events, plan, model, block, state, store), state, events, folder  # type: ignore[arg-type]

    return build


def stop(coordinator: Coordinator, events: Events) -> None:
    """`Coordinator.stop` holds the lock until the process ends; so does this thread, a daemon."""
    threading.Thread(target=coordinator.stop, daemon=True).start()
    assert events.ended.wait(120)


def test_a_checkpoint_is_a_snapshot_of_its_round(build: Build, tmp_path: Path) -> None:
    coordinator, state, events, folder = build(keep_checkpoints=0)
    for round_ in (1, 2):
        state.round, state.results = round_, {"train.loss": float(round_)}
        state.params.fill_(round_)
        assert state.moments is not None
        state.moments.fill_(10 * round_)
        coordinator.report(RESULTS | {"train.loss": float(round_)})
        state.params.fill_(99)  # the next round begins while the checkpoint is written
        state.moments.fill_(99)
    coordinator._writer.wait()
    assert folder.rounds() == [2, 1]
    for round_ in (1, 2):
        tensors, header = builders.read(tmp_path / "out" / f"round-{round_:06d}.safetensors")
        assert {float(value) for value in tensors["classifier.weight"].flat} == {round_}
        assert {float(value) for value in tensors["server_moment_0.classifier.weight"].flat} == {10 * round_}
        assert header["metrics"] == RESULTS | {"train.loss": round_}
        assert header["history"] == {str(r): RESULTS | {"train.loss": r} for r in range(1, round_)}
        assert (header["reported"], header["round"]) == (True, round_)
    assert [event["round"] for event in events if event["event"] == "round"] == [1, 2]
    assert [event["round"] for event in events if event["event"] == "checkpoint"] == [1, 2]


def test_a_stop_saves_the_last_round_unless_a_server_step_is_half_done(build: Build) -> None:
    coordinator, state, events, folder = build()
    state.round, state.partly_updated = 4, True
    stop(coordinator, events)
    assert folder.rounds() == []
    assert events == [{"event": "stopped"}]
    assert state.lock.locked(), "no further round changes the state"


def test_a_stop_saves_nothing_before_the_first_round(build: Build) -> None:
    coordinator, _, events, folder = build()
    stop(coordinator, events)
    assert (folder.rounds(), events) == ([], [{"event": "stopped"}])


def test_a_stop_before_the_evaluation_saves_the_round_as_unreported(build: Build, tmp_path: Path) -> None:
    coordinator, state, events, folder = build(round_=3, keep_best="validation.loss", checkpoint_every=5)
    state.round, state.results = 4, {"train.loss": 0.75}
    stop(coordinator, events)
    assert folder.rounds() == [4]
    _, header = builders.read(tmp_path / "out" / "round-000004.safetensors")
    assert (header["reported"], header["metrics"], header["best"]) == (False, {"train.loss": 0.75}, None)
    assert [event["event"] for event in events] == ["checkpoint", "stopped"]


def test_a_round_that_is_saved_is_not_saved_again_at_a_stop(build: Build) -> None:
    coordinator, state, events, _ = build()
    state.round = 1
    coordinator.report(RESULTS)
    stop(coordinator, events)
    assert [event["event"] for event in events] == ["round", "checkpoint", "stopped"]


def test_a_resumed_job_that_is_stopped_at_once_saves_nothing(build: Build) -> None:
    coordinator, _, events, folder = build(round_=3)
    stop(coordinator, events)
    assert (folder.rounds(), events) == ([], [{"event": "stopped"}])


def test_a_resumed_job_knows_the_best_round_and_the_results_of_before(build: Build, tmp_path: Path) -> None:
    history = {str(round_): {"validation.loss": 1 / 2**round_} for round_ in (1, 2, 3)}
    before = {"best": BestRound("validation.loss", 3, 0.125), "history": history}
    coordinator, state, _, _ = build(round_=3, of_plan=before, keep_best="validation.loss")
    state.round = 4
    coordinator.report({"validation.loss": 0.25})
    coordinator._writer.wait()
    _, header = builders.read(tmp_path / "out" / "round-000004.safetensors")
    assert header["best"] == {"metric": "validation.loss", "round": 3, "value": 0.125}
    assert header["history"] == history


def test_a_round_that_was_saved_before_its_evaluation_is_saved_again_with_it(build: Build, tmp_path: Path) -> None:
    coordinator, _, _, _ = build(round_=4, of_plan={"reported": False})
    coordinator.report(RESULTS)
    coordinator._writer.wait()
    _, header = builders.read(tmp_path / "out" / "round-000004.safetensors")
    assert (header["reported"], header["metrics"]) == (True, RESULTS)


def test_checkpoints_that_cannot_be_removed_are_a_note(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, state, events, _ = build()
    monkeypatch.setattr(CheckpointStore, "prune", lambda *_: "cannot remove old checkpoints")
    state.round = 1
    coordinator.report(RESULTS)
    coordinator._writer.wait()
    assert events[-1] == {"event": "said", "text": "note: cannot remove old checkpoints"}


def test_the_best_round_stays_and_older_checkpoints_go(build: Build, tmp_path: Path) -> None:
    coordinator, state, _, folder = build(keep_best="validation.loss", keep_checkpoints=1)
    for round_, loss in ((1, 0.5), (2, 0.25), (3, float("nan")), (4, 0.75)):
        state.round = round_
        coordinator.report({"validation.loss": loss})
    coordinator._writer.wait()
    assert folder.rounds() == [4, 2]
    _, header = builders.read(tmp_path / "out" / "round-000004.safetensors")
    assert header["best"] == {"metric": "validation.loss", "round": 2, "value": 0.25}
    assert header["history"]["3"] == {"validation.loss": "nan"}


@pytest.mark.parametrize(
    ("keep", "running", "finished"), [(None, [4, 3], [4]), (0, [4, 3, 2, 1], [4, 3, 2, 1]), (3, [4, 3, 2], [4, 3, 2])]
)
def test_a_running_job_keeps_two_checkpoints_and_a_finished_one_the_last_unless_the_key_says_otherwise(
    build: Build, keep: int | None, running: list[int], finished: list[int]
) -> None:
    coordinator, state, _, folder = build(keep_checkpoints=keep, export="best")  # and no round is the best
    for round_ in (1, 2, 3, 4):
        state.round = round_
        coordinator.report(RESULTS)
    coordinator._writer.wait()
    assert folder.rounds() == running
    coordinator.finish()
    assert folder.rounds() == finished


def test_the_evaluation_before_round_1_is_reported_and_not_saved(build: Build) -> None:
    coordinator, _, events, folder = build()
    coordinator.report(RESULTS)
    coordinator._writer.wait()
    assert (folder.rounds(), [event["event"] for event in events]) == ([], ["round"])


def test_a_round_that_is_not_evaluated_has_no_confusion_matrix_of_an_earlier_one(build: Build) -> None:
    coordinator, state, events, _ = build(checkpoints_dir=None)
    for round_, confusion in ((1, {"validation": np.array([[3, 1], [0, 2]])}), (2, {}), (3, {"held_back": np.eye(2)})):
        state.round = round_
        state.confusion |= confusion
        coordinator.report(RESULTS)
    assert [event["confusion"] for event in events] == [
        {"validation": [[3, 1], [0, 2]]}, {}, {"held_back": [[1, 0], [0, 1]]},
    ]  # fmt: skip


def test_each_exported_folder_has_the_model_and_the_results_of_its_round(build: Build, tmp_path: Path) -> None:
    coordinator, state, events, _ = build(keep_best="validation.loss", export="both", model="tiny")
    coordinator._plan = dataclasses.replace(coordinator._plan, folder=str(tmp_path / "work"))
    builders.tokenizer().save_pretrained(tmp_path / "work" / "model")
    for round_, loss in ((1, 0.75), (2, 0.125), (3, 0.375)):
        state.round = round_
        state.params.fill_(round_)
        coordinator.report({"validation.loss": loss, "train.loss": 9.0})
    coordinator.finish()
    for name, round_, loss in (("model", 3, "0.3750"), ("model-best", 2, "0.1250")):
        folder = tmp_path / "out" / name
        weights = safetensors.numpy.load_file(folder / "model.safetensors")
        assert {float(value) for value in weights["classifier.weight"].flat} == {round_}
        card = (folder / "README.md").read_text().splitlines()
        assert f"## Results after round {round_}" in card
        assert f"| validation.loss | {loss} |" in card
    assert {"event": "said", "text": "best round by validation.loss: 2, with 0.1250"} in events
    assert [event["path"] for event in events if event["event"] == "model"] == [
        str(tmp_path / "out" / "model"), str(tmp_path / "out" / "model-best"),
    ]  # fmt: skip


def test_a_checkpoint_holds_the_sites_state_of_its_round_and_not_of_the_next(build: Build, tmp_path: Path) -> None:
    write_state(tmp_path / "start", {"site_0.m": np.zeros(1, np.float32)}, {})
    store = SiteStateStore(tmp_path / "kept", tmp_path / "start")
    coordinator, state, events, _ = build(store=store, checkpoint_every=5)
    for round_ in (1, 2):
        store.save(0, round_, {"m": torch.full((1,), float(round_))})
    state.round = 1  # round 2 is under way: a site has trained, but the server has made no step
    stop(coordinator, events)
    tensors, _ = builders.read(tmp_path / "out" / "round-000001.safetensors")
    assert tensors["site_0.m"].tolist() == [1.0]


def refuse(*_: Any) -> None:
    raise OSError("no space")


def test_a_checkpoint_that_failed_is_raised_at_the_next_report(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if no checkpoint is due: the job must not train on for hours."""
    coordinator, state, events, _ = build(checkpoint_every=2)
    monkeypatch.setattr(CheckpointStore, "save", refuse)
    state.round = 2
    coordinator.report(RESULTS)
    assert coordinator._writer._last is not None
    assert isinstance(coordinator._writer._last.exception(timeout=120), OSError)
    state.round = 3
    with pytest.raises(OSError, match="no space"):
        coordinator.report(RESULTS)
    assert [event["round"] for event in events] == [2]


def test_a_checkpoint_that_failed_is_the_failure_of_a_stop(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, state, events, _ = build()
    monkeypatch.setattr(CheckpointStore, "save", refuse)
    state.round = 1
    coordinator.report(RESULTS)
    stop(coordinator, events)
    (failed,) = (event["failure"] for event in events if event["event"] == "failed")
    assert str(failed) == "OSError: no space"
