import dataclasses
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from scaling_fl.checkpoint import store
from scaling_fl.checkpoint.final_model import COMPLETE
from scaling_fl.config.schema import Config
from scaling_fl.distributed import fused_sum
from scaling_fl.distributed.shared_memory import SharedMemory
from scaling_fl.errors import UserError
from scaling_fl.federated.run_plan import Plan
from scaling_fl.federated.site import Site
from scaling_fl.models.flat_parameters import FlatModel
from scaling_fl.runtime import launcher, signals, worker


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launcher.prepare(config, str(folder), lambda event: None)


def test_checkpoints_are_written_when_due_and_after_the_last_round(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, num_rounds=5, checkpoint_every=2)
    launcher.train(prepare(config, tmp_path / "work"), lambda event: None)
    assert store.CheckpointStore(str(tmp_path / "out")).rounds() == [5, 4, 2]


def test_progress_after_a_resume_is_counted_for_the_rounds_that_are_trained(
    small_config: Config, tmp_path: Path
) -> None:
    launcher.train(prepare(small_config, tmp_path / "first"), lambda event: None)
    events = list[dict[str, Any]]()
    launcher.train(prepare(dataclasses.replace(small_config, num_rounds=3), tmp_path / "second"), events.append)
    told = [(event["worker"], event["round"]) for event in events if event["event"] == "progress"]
    assert set(told) == {(0, 2), (1, 2), (0, 3), (1, 3)}


def test_an_incomplete_model_is_written_again(small_config: Config, tmp_path: Path) -> None:
    launcher.train(prepare(small_config, tmp_path / "first"), lambda event: None)
    assert prepare(small_config, tmp_path / "second").finished
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "| validation.accuracy | " in card
    assert str(tmp_path) not in card
    for damage in (b"", b"half"):
        (tmp_path / "out" / "model" / "model.safetensors").write_bytes(damage)
        assert not prepare(small_config, tmp_path / f"other {damage!r}").finished
    (tmp_path / "out" / "model" / COMPLETE).unlink()
    plan = prepare(small_config, tmp_path / "third")
    assert (plan.round, plan.finished) == (1, False)
    launcher.train(plan, lambda event: None)
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights
    assert (tmp_path / "out" / "model" / "README.md").read_text() == card
    assert prepare(small_config, tmp_path / "fourth").finished


def test_no_site_trains_before_the_state_is_in_place(small_config: Config, tmp_path: Path) -> None:
    launcher.train(prepare(small_config, tmp_path / "first"), lambda event: None)
    two_rounds = dataclasses.replace(small_config, num_rounds=2)
    final_states = []
    for run, name in ((launcher.train, "plain"), (train_with_a_slow_coordinator, "slow")):
        run(prepare(two_rounds, tmp_path / name), lambda event: None)
        final_states.append(store.read_state(tmp_path / "out" / "round-000002.safetensors")[0])
        (tmp_path / "out" / "round-000002.safetensors").unlink()
    for tensor, array in final_states[0].items():
        assert array.tobytes() == final_states[1][tensor].tobytes(), tensor


def train_with_a_slow_coordinator(plan: Plan, on_event: Callable[[dict[str, Any]], None]) -> None:
    memory = SharedMemory()
    jobs = [(plan, rank, memory) for rank in range(2)]
    launcher.run_children(f"{__name__}:slow_coordinator", jobs, ["0", "1"], plan.folder, on_event)
    memory.close()


def slow_coordinator(send: Any, plan: Plan, rank: int, memory: SharedMemory) -> None:
    """Run a worker; worker 0 is slow to fill the server state."""
    fill = FlatModel.fill

    def slow_fill(*args: Any) -> None:
        if rank == 0:
            time.sleep(1)
        fill(*args)

    FlatModel.fill = slow_fill  # type: ignore[method-assign]
    worker.work(send, plan, rank, memory)


def train_with_storage(how: str, plan: Plan, on_event: Callable[[dict[str, Any]], None]) -> None:
    memory = SharedMemory()
    jobs = [(plan, rank, memory, how) for rank in range(2)]
    try:
        launcher.run_children(f"{__name__}:with_storage", jobs, ["0", "1"], plan.folder, on_event)
    finally:
        memory.close()


def with_storage(send: Any, plan: Plan, rank: int, memory: SharedMemory, how: str) -> None:
    """Run a worker whose checkpoints are slow, or fail from round 2 on.

    slow: the checkpoint of round 1 is written after the file `round 2` appears. seen: round 3 begins after the checkpoint
    of round 2 has failed.
    """
    save, train = store.CheckpointStore.save, Site.train
    failed, reported = Path(plan.folder, "failed"), Path(plan.folder, "round 2")

    def patched_save(self: Any, round_: int, *args: Any) -> str:
        if how == "slow":
            wait_for(reported)
        elif round_ > 1:
            failed.touch()
            raise UserError("checkpoints_dir=out: cannot write to it")
        return save(self, round_, *args)

    def train_after_failure(self: Any, params: Any, round_: int, *more: Any) -> Any:
        if how == "seen" and round_ == 3:
            wait_for(failed)
            time.sleep(0.1)
        return train(self, params, round_, *more)

    Site.train = train_after_failure  # type: ignore[method-assign]
    store.CheckpointStore.save = patched_save  # type: ignore[method-assign]
    worker.work(send, plan, rank, memory)


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)


def test_training_continues_while_a_checkpoint_is_written(small_config: Config, tmp_path: Path) -> None:
    events: list[tuple[str, int]] = []
    config = dataclasses.replace(small_config, num_rounds=3)

    def keep(event: dict[str, Any]) -> None:
        if event["event"] in ("round", "checkpoint"):
            events.append((event["event"], event["round"]))
        if event["event"] == "round" and event["round"] == 2:
            (tmp_path / "slow" / "round 2").touch()

    train_with_storage("slow", prepare(config, tmp_path / "slow"), keep)
    assert events.index(("round", 2)) < events.index(("checkpoint", 1))
    assert [round_ for event, round_ in events if event == "checkpoint"] == [1, 2, 3]
    slow = [store.read_state(tmp_path / f"out/round-{r:06d}.safetensors")[0] for r in (1, 2, 3)]
    other = dataclasses.replace(config, checkpoints_dir=str(tmp_path / "other"))
    launcher.train(prepare(other, tmp_path / "plain"), lambda event: None)
    for round_, tensors in zip((1, 2, 3), slow, strict=True):
        plain = store.read_state(tmp_path / f"other/round-{round_:06d}.safetensors")[0]
        for name, array in tensors.items():
            assert array.tobytes() == plain[name].tobytes(), f"{name} in the checkpoint of round {round_}"


@pytest.mark.parametrize("every", [1, 2])
def test_a_checkpoint_that_cannot_be_written_ends_the_job_in_the_next_round(
    small_config: Config, tmp_path: Path, every: int
) -> None:
    rounds_seen: list[int] = []
    config = dataclasses.replace(small_config, num_rounds=9, checkpoint_every=every)
    plan = prepare(config, tmp_path / "work")
    with pytest.raises(UserError, match="checkpoints_dir=out: cannot write to it"):
        train_with_storage("seen", plan, lambda e: rounds_seen.append(e["round"]) if e["event"] == "round" else None)
    assert rounds_seen in ([0, 1, 2], [0, 1, 2, 3]), "the checkpoint of round 2 fails during round 3"
    assert store.CheckpointStore(str(tmp_path / "out")).rounds() == [1] * (every == 1)


def test_a_job_that_is_asked_to_stop_and_cannot_publish_says_why(
    small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_received", [])
    before = signal.signal(signal.SIGINT, signals._receive)
    plan = prepare(dataclasses.replace(small_config, num_rounds=9999, checkpoint_every=9999), tmp_path / "work")

    def interrupt(event: dict[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        with signals.graceful_stop(), pytest.raises(UserError, match="checkpoints_dir=out: cannot write to it"):
            train_with_storage("broken", plan, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_workers_have_the_threads_of_the_plan_and_the_first_says_what_is_slow(
    small_config: Config, tmp_path: Path
) -> None:
    plan = dataclasses.replace(prepare(small_config, tmp_path / "work"), threads=(os.cpu_count() or 1) + 1)
    memory, events = SharedMemory(), list[dict[str, Any]]()
    jobs = [(plan, rank, memory) for rank in range(2)]
    try:
        launcher.run_children(f"{__name__}:without_a_compiler", jobs, ["0", "1"], plan.folder, events.append)
    finally:
        memory.close()
    assert [event["threads"] for event in events if event["event"] == "threads"] == [plan.threads] * 2
    assert [event["text"] for event in events if event["event"] == "said"] == [
        "note: sums of deltas are slower than with a C compiler: there is no cc"
    ]


def without_a_compiler(send: Any, plan: Plan, rank: int, memory: SharedMemory) -> None:
    """Run a worker; then send the number of its threads."""
    fused_sum.refusal = lambda device: "there is no cc"
    worker.work(send, plan, rank, memory)
    send({"event": "threads", "threads": torch.get_num_threads()})


def test_a_job_has_the_noise_that_its_epsilon_needs(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(
        small_config, num_rounds=2, weighting="uniform", dp_clip=0.5, dp_epsilon=8.0, dp_delta=0.01, dp_seed=3
    )
    plan, events = prepare(config, tmp_path / "work"), list[dict[str, Any]]()
    assert any(f"noise multiplier {plan.noise_multiplier:.4g}; after all 2 rounds ε = " in note for note in plan.notes)
    launcher.train(plan, events.append)
    spent = [event["metrics"].get("dp.epsilon_pld", 0.0) for event in events if event["event"] == "round"]
    assert spent[1] < 0.9 * spent[2]
    assert 0.97 * 8 < spent[2] <= 8
