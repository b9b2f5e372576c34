import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaling_fl import checkpoint, launch, worker
from scaling_fl.config import Config
from scaling_fl.flat import FlatModel
from scaling_fl.memory import SharedMemory
from scaling_fl.plan import Plan
from tests import builders


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        site_ids=(-1, -1), num_rounds=1, task_name="csv", train_path=str(builders.write_csv(tmp_path / "train.csv", 41)),
        test_path=str(builders.write_csv(tmp_path / "test.csv", 9, 1)), text_column="body", label_column="topic",
        model=str(builders.pretrained(tmp_path / "model")), max_seq_len=16, batch_size=8, job_name="j",
        checkpoints_dir=str(tmp_path / "out"), threads_per_site=1,
    )  # fmt: skip


def prepare(config: Config, folder: Path) -> Plan:
    folder.mkdir()
    return launch.prepare(config, str(folder), lambda event: None)


def test_the_plan_tells_what_was_found(config: Config, tmp_path: Path) -> None:
    plan = prepare(config, tmp_path / "work")
    assert (plan.round, plan.finished, plan.threads, plan.devices) == (0, False, 1, ("cpu", "cpu"))
    assert (plan.shard_sizes, plan.num_train, plan.num_test) == ((21, 20), 41, 9)
    assert plan.label_names == ("class 0", "class 1", "class 2")
    assert plan.new_parameters == ("classifier.bias", "classifier.weight")
    assert plan.steps_per_round == 3 + 3
    assert plan.evaluation_steps == 1
    with np.load(tmp_path / "work" / "shards.npz") as shards:
        assert sorted(np.concatenate([shards["arr_0"], shards["arr_1"]]).tolist()) == list(range(41))


def test_a_job_with_other_threads_or_versions_goes_on_and_says_so(config: Config, tmp_path: Path) -> None:
    plan = prepare(config, tmp_path / "first")
    launch.train(plan, lambda event: None)
    folder = checkpoint.Checkpoints(str(tmp_path / "out"))
    tensors, header = checkpoint.read_state(tmp_path / "out" / "round-000001.safetensors")
    header["versions"]["torch"] = "1.0"
    header["threads"] = 7
    folder.save(1, tensors, header)

    again = dataclasses.replace(config, num_rounds=2)
    plan = prepare(again, tmp_path / "second")
    assert (plan.round, plan.threads) == (1, 1)
    assert any("threads_per_site was 7, is 1" in note for note in plan.notes)
    assert any("resuming with other versions (torch 1.0 → " in note for note in plan.notes)
    plan = prepare(dataclasses.replace(again, threads_per_site=None), tmp_path / "third")
    assert plan.threads == 7, "without a setting of its own, a resume takes the checkpoint's"


def test_no_site_trains_before_the_state_is_in_place(config: Config, tmp_path: Path) -> None:
    launch.train(prepare(config, tmp_path / "first"), lambda event: None)
    twice = dataclasses.replace(config, num_rounds=2)
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
