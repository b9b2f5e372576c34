"""A database that is unreachable for a while: the job doesn't wait for it, and the entry is complete in the end."""

import contextlib
import datetime
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymongo
import pytest

from scaling_fl.tracking import events
from tests.chaos.conftest import Server
from tests.chaos.job import Job, job, synced
from tests.scripts.script import start, wait_for_row

pytestmark = pytest.mark.chaos


def assert_complete(server: Server, finished: Job) -> None:
    """Assert that the entry in the database equals the file record."""
    database = server.database(finished.environ["SACRED_DATABASE"])
    (entry,) = database.runs.find()
    (folder,) = (finished.folder / "runs").glob("[0-9]*")
    metrics = json.loads((folder / "metrics.json").read_text())
    found = {document["name"]: document for document in database.metrics.find()}
    assert found.keys() == metrics.keys()
    for name, metric in metrics.items():
        assert (found[name]["steps"], found[name]["values"]) == (metric["steps"], metric["values"]), name
    assert entry["status"] == json.loads((folder / "run.json").read_text())["status"] == "COMPLETED"
    assert entry["captured_out"] == (folder / "cout.txt").read_text()
    assert {artifact["name"] for artifact in entry["artifacts"]} == {
        "shards.csv", "metrics.csv", "validation_confusion.csv", "validation_per_class.csv",
    }  # fmt: skip


def events_of(job: Job) -> list[dict[str, Any]]:
    return events.read(job.folder / "runs" / "_events" / "news.jsonl")[0]


def test_a_server_that_comes_and_goes_ends_up_with_the_whole_entry(server: Server, tmp_path: Path) -> None:
    flaky = job(tmp_path / "job", server.address)
    # The server is down when the job starts.
    process = start(flaky.folder, *flaky.words, "num_rounds=40", "num_local_epochs=20", **flaky.environ)
    text = wait_for_row(process, 1)
    assert f"note: MongoDB at {server.address}: it can't be reached" in text
    assert "the job will be recorded there once that is fixed" in " ".join(text.split())
    server.start()
    text = wait_for_row(process, 20, text)
    server.kill()
    wait_for_row(process, 30, text)
    server.start()
    rest = process.communicate()[0]
    assert process.returncode == 0, rest
    synced(flaky)
    assert_complete(server, flaky)


def wait_until(condition: Callable[[], bool], marker: Path | None = None) -> None:
    """Wait for `condition`, then create the file `marker`. The test's time-out is the limit."""
    while not condition():
        time.sleep(0.05)
    if marker is not None:
        marker.touch()


def has_entry(server: Server, name: str) -> bool:
    with contextlib.suppress(pymongo.errors.PyMongoError):
        return server.database(name).runs.find_one() is not None
    return False


@pytest.mark.thorough
def test_a_server_that_stays_down_delays_nothing_and_sync_completes_the_entry(server: Server, tmp_path: Path) -> None:
    unrecorded = job(tmp_path / "job", server.address)
    # The pause lets the launcher notice the outage before the last rounds.
    pause = {"place": "training", "kind": "pause", "worker": 1, "round": 2, "marker": str(tmp_path / "m")}
    done = unrecorded.run(pause, "num_rounds=6")
    assert done.returncode == 0, done.stderr
    notes = [
        event for event in events_of(unrecorded) if event["event"] == "output" and "training continues" in event["text"]
    ]
    assert len(notes) == 1, "the outage is reported once"
    assert not (tmp_path / "m waits for MongoDB").exists(), (
        "the main thread handles the rounds, and must not wait for it"
    )
    assert "the job will be recorded there once that is fixed" in " ".join(done.stdout.split()), "at the start"
    assert "`sync with job_name=news` brings it up to date" in " ".join(done.stdout.split()), "at the end"

    server.start()
    folder = tmp_path / "another machine"
    (folder / "runs" / "_events").mkdir(parents=True)
    shutil.copy(unrecorded.folder / "runs" / "_events" / "news.jsonl", folder / "runs" / "_events")
    elsewhere = Job(["sync", "with", "job_name=news"], folder, unrecorded.environ)
    synced = elsewhere.run()
    assert synced.returncode == 0, synced.stderr
    assert "run 1 in database job" in synced.stdout
    assert_complete(server, unrecorded)
    assert_complete(server, elsewhere)
    again = elsewhere.run()
    assert again.returncode == 0
    assert_complete(server, unrecorded)


def test_a_resume_continues_the_entry(server: Server, tmp_path: Path) -> None:
    server.start()
    resumed = job(tmp_path / "job", server.address)
    fault = {"place": "training", "kind": "launcher SIGKILL", "worker": 1, "round": 3, "marker": str(tmp_path / "m")}
    entered = threading.Thread(target=lambda: wait_until(lambda: has_entry(server, "job"), tmp_path / "entered"))
    entered.start()  # on a busy machine, the kill would come before the entry
    resumed.run(fault | {"after": str(tmp_path / "entered")})
    entered.join()
    (killed,) = server.database("job").runs.find()
    assert killed["status"] == "RUNNING"
    done = resumed.run()
    assert done.returncode == 0, done.stderr
    synced(resumed)
    (entry,) = server.database("job").runs.find()
    assert entry["_id"] == killed["_id"]
    first = datetime.datetime.fromisoformat(entry["info"]["starts"][0]["time"])
    kept = datetime.datetime.fromisoformat(str(entry["start_time"]))  # this server returns dates as text
    assert abs(kept - first) < datetime.timedelta(milliseconds=2), "the database keeps milliseconds"
    after = [start["after_round"] for start in entry["info"]["starts"]]
    assert after in ([0, 1], [0, 2]), "the checkpoint of round 2 may not have been complete"
    assert entry["captured_out"].count("round    loss") == 2, "the output before the kill is kept"
    assert_complete(server, resumed)
    finished = resumed.run()
    assert finished.returncode == 0
    assert "job news is finished" in finished.stdout
    namesake = job(tmp_path / "namesake", server.address)
    namesake.environ["SACRED_DATABASE"] = "job"
    refused = namesake.run()
    assert refused.returncode == 1
    assert "job_name=news: MongoDB at 127.0.0.1:" in refused.stderr
    assert "already has a job of this name, in run 1 (COMPLETED, " in refused.stderr
    assert not (namesake.folder / "runs").exists()


@pytest.mark.thorough
def test_a_job_that_runs_on_another_machine_keeps_a_second_run_out(
    server: Server, tmp_path: Path, short_folder: Path
) -> None:
    server.start()
    here = job(tmp_path / "here", server.address)
    for machine in ("a", "b"):  # each has its own lock files
        (short_folder / machine).mkdir()
    process = start(here.folder, *here.words, "num_rounds=9999", TMPDIR=str(short_folder / "a"), **here.environ)
    wait_for_row(process, 1)
    lease = here.folder / "out" / "lease.json"
    wait_until(lambda: "in database here" in lease.read_text())
    shutil.copytree(here.folder / "model", tmp_path / "there" / "model")
    there = Job(
        [*here.words, f"checkpoints_dir={here.folder}/out"], tmp_path / "there", {"TMPDIR": str(short_folder / "b")}
    )
    refused = there.run()
    assert refused.returncode == 1
    assert "job news: a run on " in refused.stdout
    holder = f"(process {process.pid}, recorded in runs/1, run 1 in database here)"
    assert f"{holder} is still writing to it; wait for it to end" in refused.stderr
    assert not (there.folder / "runs").exists()

    process.kill()
    process.communicate()
    resumed = there.run(None, "num_rounds=2")
    assert "waiting up to" in resumed.stdout
    assert resumed.returncode == 0, resumed.stderr
    assert list((here.folder / "out").glob("lease.json")) == []
