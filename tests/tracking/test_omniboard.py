"""Omniboard finds all that it shows in an entry."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pymongo
import pytest

from scaling_fl.tracking import events
from scaling_fl.tracking.mongo import MongoEntry
from scaling_fl.tracking.mongo_address import Address
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.replay import Replay
from tests.tracking import builders, omniboard

# The fields that its table and a run's page request.
TABLE = "_id,heartbeat,experiment.name,command,status,start_time,duration,config,host,omniboard,result"
PAGE = "captured_out,info,meta,host,experiment,artifacts,config,fail_trace,status"


@pytest.fixture(params=["its queries", pytest.param("itself", marks=pytest.mark.omniboard)])
def viewer(request: Any, mongo: str, tmp_path: Path) -> Iterator[omniboard.Omniboard | omniboard.Queries]:
    """A viewer of a database with a running and a finished job."""
    for name in ("running", "done"):
        log = builders.job(tmp_path, name)
        if name == "done":
            builders.round_(log, 3, 0.125)
            log.append("completed")
        log.close()
        replay = Replay(log.path, MongoEntry(Address(f"mongodb://{mongo}", "lab")))
        replay.step()
        assert replay.trouble is None, replay.describe_trouble()
    if request.param == "itself":
        (tmp_path / "npm").mkdir()
        with omniboard.running(omniboard.install(tmp_path / "npm"), mongo, "lab") as shown:
            yield shown
    else:
        yield omniboard.Queries(pymongo.MongoClient(f"mongodb://{mongo}", serverSelectionTimeoutMS=5000)["lab"])


def test_omniboard_shows_runs_metrics_and_files(viewer: omniboard.Omniboard | omniboard.Queries) -> None:
    assert viewer.count() == 2
    done, running = viewer.table(TABLE)
    assert [int(run["_id"]) for run in (done, running)] == [2, 1], "newest first"
    assert [run["status"] for run in (done, running)] == ["COMPLETED", "RUNNING"]
    assert [run["config"]["job_name"] for run in (done, running)] == ["done", "running"]
    assert done["command"] == "train"
    assert "duration" in done
    page = viewer.run(2, PAGE)
    assert (page["captured_out"], page["host"]["hostname"], page["fail_trace"]) == ("hello\n", "h", None)
    assert page["experiment"]["name"] == "scaling_fl"
    assert page["meta"]["comment"] == "c"

    metrics = {metric["name"]: metric for metric in viewer.metrics(2)}
    assert metrics.keys() == {"train.loss", "seconds.checkpoint", "only.in.1", "only.in.2", "only.in.3"}
    assert metrics["train.loss"]["steps"] == [1, 2, 3]
    assert metrics["train.loss"]["values"] == [0.5, 0.25, 0.125]
    assert len(metrics["train.loss"]["timestamps"]) == 3
    listed = {metric["name"]: metric["id"] for metric in page["info"]["metrics"]}
    assert listed == {name: str(metric["_id"]) for name, metric in metrics.items()}, "columns are joined by these ids"
    assert set(viewer.metric_names()) == metrics.keys()
    assert len(viewer.metrics(1)) == len(metrics) - 1

    names = sorted(file["filename"] for file in viewer.files(2, "artifacts"))
    assert names == ["artifact://runs/2/metrics.csv", "artifact://runs/2/shards.csv"]
    assert [file["filename"] for file in viewer.files(2, "source")] == ["m.py"]
    artifacts = viewer.download(2, "artifacts")
    assert artifacts["shards.csv"] == b"site,examples\n0,5\n1,4\n"
    assert artifacts["metrics.csv"].splitlines()[3].startswith(b"3,0.125,")
    assert viewer.download(2, "source") == {"m.py": b"print()\n"}


def test_times_are_dates(tmp_path: Path) -> None:
    """Omniboard calculates with them. Checked before the database, because the test server stores dates as text."""
    log = builders.job(tmp_path)
    log.append("completed")
    log.close()
    record = Record.from_events(events.read(log.path)[0])
    times = [record.entry[name] for name in ("start_time", "stop_time", "heartbeat")]
    assert all(isinstance(time, datetime.datetime) for time in [*times, *record.points("train.loss")["timestamps"]])
