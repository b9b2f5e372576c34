"""The records of a job that isn't running are brought up to date."""

import json
from pathlib import Path

from scaling_fl.tracking import events
from scaling_fl.tracking.destinations import Destinations
from scaling_fl.tracking.file_record import find
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
