import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling_fl import checkpoint, launch, worker
from scaling_fl.config import Config
from scaling_fl.flat import FlatModel
from scaling_fl.memory import SharedMemory
from scaling_fl.plan import Plan
from scaling_fl.prepare import COMPLETE


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launch.prepare(config, str(folder), lambda event: None)


def test_checkpoints_come_when_they_are_due_and_after_the_last_round(small_config: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(small_config, num_rounds=5, checkpoint_every=2)
    launch.train(prepare(config, tmp_path / "work"), lambda event: None)
    assert checkpoint.Checkpoints(str(tmp_path / "out")).rounds() == [5, 4, 2]


def test_a_model_that_was_not_written_to_its_end_is_written_again(small_config: Config, tmp_path: Path) -> None:
    launch.train(prepare(small_config, tmp_path / "first"), lambda event: None)
    assert prepare(small_config, tmp_path / "second").finished
    weights = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    for damage in (b"", b"half"):
        (tmp_path / "out" / "model" / "model.safetensors").write_bytes(damage)
        assert not prepare(small_config, tmp_path / f"other {damage!r}").finished
    (tmp_path / "out" / "model" / COMPLETE).unlink()
    plan = prepare(small_config, tmp_path / "third")
    assert (plan.round, plan.finished) == (1, False)
    launch.train(plan, lambda event: None)
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == weights
    assert prepare(small_config, tmp_path / "fourth").finished


def test_no_site_trains_before_the_state_is_in_place(small_config: Config, tmp_path: Path) -> None:
    launch.train(prepare(small_config, tmp_path / "first"), lambda event: None)
    twice = dataclasses.replace(small_config, num_rounds=2)
    final = []
    for run, name in ((launch.train, "plain"), (train_with_a_slow_coordinator, "slow")):
        run(prepare(twice, tmp_path / name), lambda event: None)
        final.append(checkpoint.read_state(tmp_path / "out" / "round-000002.safetensors")[0])
        (tmp_path / "out" / "round-000002.safetensors").unlink()
    for tensor, array in final[0].items():
        assert array.tobytes() == final[1][tensor].tobytes(), tensor


def train_with_a_slow_coordinator(plan: Plan, on_event: Callable[[dict[str, Any]], None]) -> None:
    memory = SharedMemory()
    jobs = [(plan, rank, memory) for rank in range(2)]
    launch.run(f"{__name__}:slow_coordinator", jobs, ["0", "1"], plan.folder, on_event)
    memory.close()


def slow_coordinator(send: Any, plan: Plan, rank: int, memory: SharedMemory) -> None:
    """A worker, of which number 0 takes its time to put the server state in place."""
    fill = FlatModel.fill

    def slow_fill(*args: Any) -> None:
        if rank == 0:
            time.sleep(1)
        fill(*args)

    FlatModel.fill = slow_fill  # type: ignore[method-assign]
    worker.work(send, plan, rank, memory)
