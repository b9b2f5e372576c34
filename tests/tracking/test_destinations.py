"""The records of a job that isn't running are brought up to date."""

import json
from pathlib import Path

import pytest

from scaling_fl.checkpoint.lease import Lease
from scaling_fl.checkpoint.store import CheckpointStore
from scaling_fl.errors import UserError
from scaling_fl.federated.best_round import BestRound
from scaling_fl.tracking import events
from scaling_fl.tracking.destinations import Destinations
from scaling_fl.tracking.file_record import find
from scaling_fl.tracking.replay import Replay
from tests.tracking import builders


def test_what_a_finished_job_could_not_record_is_added_once(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.close()  # the launcher is killed after it has saved round 3, the last one, and the model
    before = events.read(log.path)[0]
    history = {str(round_): {"train.loss": round_ / 10} for round_ in (1, 2, 3)}
    plan = builders.plan(str(tmp_path / "c"), round_=3, history=history)
    places, said = Destinations([tmp_path / "runs", tmp_path / "more"]), list[str]()
    assert places.bring_up_to_date(plan.config, log.path, said.append, plan)
    added = events.read(log.path)[0][len(before) :]
    assert [event["event"] for event in added] == ["died", "round", "model", "completed"]
    assert (added[1]["round"], added[1]["metrics"], added[2]["path"]) == (3, history["3"], f"{tmp_path}/c/model")
    content = log.path.read_bytes()
    assert places.bring_up_to_date(plan.config, log.path, said.append, plan)
    assert log.path.read_bytes() == content
    runs = [find(folder, str(events.job_id(log.path))) for folder in places.folders]
    assert said == [f"run record   {run}" for run in runs] * 2
    for run in runs:
        assert run is not None
        assert json.loads((run / "run.json").read_text())["status"] == "COMPLETED"
        assert json.loads((run / "metrics.json").read_text())["train.loss"]["values"] == [0.5, 0.25, 0.3]


def test_a_place_that_fails_is_told_and_keeps_no_other_back(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    log.close()
    (tmp_path / "file").touch()
    places, said = Destinations([tmp_path / "file", tmp_path / "runs"]), list[str]()
    assert not places.bring_up_to_date(builders.plan().config, log.path, said.append)
    assert said[0].startswith(f"the record in {tmp_path / 'file'}: NotADirectoryError: ")
    assert said[1:] == [f"run record   {tmp_path / 'runs' / '1'}"]
    assert places.file_records(log.path) == str(tmp_path / "runs" / "1")


def test_a_resume_that_is_killed_at_its_very_end_is_completed_as_well(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    builders.start(log, after_round=2)
    log.close()  # the launcher is killed after it has saved round 3, the last one, and both models
    history, keys = {"3": {"train.loss": 0.3}}, {"export": "both", "keep_best": "train.loss"}
    plan = builders.plan(
        str(tmp_path / "c"), round_=3, keys=keys, history=history, best=BestRound("train.loss", 2, 0.25)
    )
    assert Destinations([tmp_path / "runs"]).bring_up_to_date(plan.config, log.path, lambda text: None, plan)
    kinds = [event["event"] for event in events.read(log.path)[0]]
    assert kinds[-5:] == ["died", "round", "model", "model", "completed"]
    run, info = (json.loads((tmp_path / "runs" / "1" / f"{name}.json").read_text()) for name in ("run", "info"))
    assert run["status"] == "COMPLETED"
    assert (info["files"]["model"], info["files"]["best model"]) == (f"{tmp_path}/c/model", f"{tmp_path}/c/model-best")


def test_records_that_are_brought_up_to_date_get_the_further_artifacts(tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    log.close()
    places = Destinations([tmp_path / "runs"])
    more = {"more.txt": b"more"}
    assert places.bring_up_to_date(builders.plan().config, log.path, lambda text: None, attach=lambda record: more)
    assert (tmp_path / "runs" / "1" / "more.txt").read_bytes() == b"more"


def test_a_run_that_another_has_replaced_leaves_the_copy_of_the_events_to_it(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    log, copy = builders.job(tmp_path), tmp_path / "c" / "events.jsonl"
    lease = Lease(CheckpointStore(str(tmp_path / "c")), "news")
    (mirror,) = Destinations([]).targets(builders.plan(str(tmp_path / "c")).config, lease)
    replay = Replay(log.path, mirror)
    replay.step()
    before = copy.read_bytes()
    lease.taken_over_by = "far"
    log.append("failed", trace=["why"])
    log.close()
    replay.step()
    assert replay.trouble is None
    assert copy.read_bytes() == before


def test_a_folder_for_tensorboard_that_cannot_be_written_is_refused_before_the_job_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = builders.plan(keys={"tensorboard_dir": str(tmp_path / "file")}).config
    with pytest.raises(UserError, match=r"choose another tensorboard_dir$"):
        Destinations([]).check(config, tmp_path / "news.jsonl", pytest.fail)
