"""MLflow shows a job and its resumes as one run: the same tests against a stand-in and the program itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.tracking import events, mlflow_server
from scaling_fl.tracking.events import EventLog
from scaling_fl.tracking.mlflow_run import MlflowRun
from scaling_fl.tracking.record import Record
from scaling_fl.tracking.replay import Replay
from tests.tracking import builders, mlflow
from tests.tracking.mlflow import Viewer

LARGEST = sys.float_info.max


def target(server: Viewer, **environ: str) -> MlflowRun:
    found = mlflow_server.from_environment({"MLFLOW_TRACKING_URI": server.uri} | environ)
    assert found is not None
    return MlflowRun(found, "news")


def replay(log: EventLog, server: Viewer, **environ: str) -> Replay:
    found = Replay(log.path, target(server, **environ))
    found.step()
    assert found.trouble is None, found.describe_trouble()
    return found


def resume(log: EventLog, after_round: int, host: str = "h", **config: Any) -> None:
    """Append a start with these keys."""
    start = {"host": host, "after_round": after_round, "environment": {}, "devices": ["cpu"]}
    repository = {"url": "u", "commit": "c0ffee", "dirty": host == "h"}
    sacred = builders.SACRED | {"host": {"hostname": host}}
    sacred["experiment"] = sacred["experiment"] | {"repositories": [repository]}
    info = {"label_names": ["a", "b"], "resolved": {"num_sites": 2, "precision": None}}
    log.append("started", sacred=sacred, config={"job_name": "news"} | config, start=start, info=info)


def ms(log: EventLog, kind: str) -> int:
    """The time of the last event of this kind, in milliseconds."""
    return round(1000 * [event["time"] for event in events.read(log.path)[0] if event["event"] == kind][-1])


def test_a_run_has_the_keys_metrics_files_and_the_status_of_the_job(server: Viewer, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    found = replay(log, server)
    run = server.run()
    assert found.target.location() == f"{server.uri}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}"
    assert (run["run_name"], run["status"], run["start_time"]) == ("news", "RUNNING", ms(log, "created"))
    assert "end_time" not in run
    assert run["params"] == {"job_name": "news", "num_rounds": "4"}
    assert server.history("train/loss") == [(1, 0.5), (2, 0.25)]
    assert server.history("seconds/checkpoint") == [(1, 0.25)]
    assert run["metrics"] == {"train/loss": 0.25, "only/in.1": 1.5, "only/in.2": 1.5, "seconds/checkpoint": 0.25}
    assert run["tags"]["mlflow.note.content"] == "c", "the comment"
    assert run["tags"]["mlflow.source.name"] == "m.py"
    assert run["tags"]["host"] == "h"
    log.append("completed")
    found.step()
    run = server.run()
    assert (run["status"], run["end_time"]) == ("FINISHED", ms(log, "completed"))
    record = Record.from_events(events.read(log.path)[0])
    files = record.artifacts() | {"cout.txt": b"hello\n"}
    assert {name: server.file(name) for name in files} == files


@pytest.mark.parametrize(("end", "status"), [("failed", "FAILED"), ("interrupted", "KILLED"), ("died", "FAILED")])
def test_every_end_has_its_status(stand_in: mlflow.StandIn, tmp_path: Path, end: str, status: str) -> None:
    log = builders.job(tmp_path)
    log.append(end)
    replay(log, stand_in)
    assert (stand_in.run()["status"], stand_in.run()["end_time"]) == (status, ms(log, end))


def test_a_job_and_its_resumes_are_one_run(server: Viewer, tmp_path: Path) -> None:
    """Of a round that runs again the later value counts. A run's params can't change: tags tell which keys did."""
    log = EventLog(tmp_path / "news.jsonl")
    resume(log, 0, num_rounds=2, author="me", threads_per_site=1)
    for number in (1, 2):
        builders.round_(log, number, 1 / 2**number)
    log.append("interrupted")
    replay(log, server)
    first = server.run()
    assert first["status"] == "KILLED"
    assert (first["tags"]["mlflow.user"], first["tags"]["mlflow.source.git.commit"]) == ("me", "c0ffee-dirty")

    resume(log, 1, "other", num_rounds=9, author="me", threads_per_site=4)
    builders.round_(log, 2, 0.125)
    found = replay(log, server)  # of another process
    run = server.run()
    assert (run["run_id"], run["status"], run["start_time"]) == (first["run_id"], "RUNNING", first["start_time"])
    assert "end_time" not in run
    assert run["params"] == first["params"] | {"num_rounds": "2", "threads_per_site": "1"}
    changed = {key: value for key, value in run["tags"].items() if key.startswith("changed.")}
    assert changed == {"changed.num_rounds": "9", "changed.threads_per_site": "4"}
    assert (run["tags"]["host"], run["tags"]["mlflow.source.git.commit"]) == ("other", "c0ffee")
    assert (run["tags"]["resolved.num_sites"], "resolved.precision" in run["tags"]) == ("2", False)
    assert server.history("train/loss") == [(1, 0.5), (2, 0.25), (2, 0.125)]
    assert run["metrics"]["train/loss"] == 0.125
    log.append("interrupted")

    resume(log, 2, num_rounds=9, author="me", threads_per_site=1, new_key=[1, 2])
    builders.round_(log, 3, 0.5)
    log.append("completed")
    found.step()
    run = server.run()
    assert (run["run_id"], run["status"], run["params"]["new_key"]) == (first["run_id"], "FINISHED", "[1, 2]")
    assert run["tags"]["changed.threads_per_site"] == "1", "back at the first value"
    assert run["metrics"]["train/loss"] == 0.5

    resume(log, 3, num_rounds=2, author="me", threads_per_site=1)
    replay(log, server)  # of a third process, which knows of changes by the tags alone
    assert server.run()["tags"]["changed.num_rounds"] == "2"


def test_values_that_are_no_numbers_are_shown_as_mlflow_does(server: Viewer, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    for number, value in ((3, "nan"), (4, "inf"), (5, "-inf")):
        builders.round_(log, number, value)
    replay(log, server)
    assert server.history("train/loss")[2:] == [(3, "NaN"), (4, LARGEST), (5, -LARGEST)]


def test_a_second_replay_changes_nothing(server: Viewer, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    replay(log, server)
    once, points = server.run(), server.history("train/loss")
    replay(log, server)
    assert (server.run(), server.history("train/loss")) == (once, points)


def test_an_outage_delays_what_is_recorded(server: Viewer, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    found = replay(log, server)
    before = server.run()
    server.stop()
    builders.round_(log, 3, 0.125)
    for _ in range(2):
        found.step()
        assert "it can't be reached" in found.describe_trouble()
        assert "check MLFLOW_TRACKING_URI, the network and the firewall" in found.describe_trouble()
    server.start()
    builders.round_(log, 4, 0.0625)
    log.append("completed")
    found.step()
    assert found.trouble is None, found.describe_trouble()
    assert (server.run()["run_id"], server.run()["status"]) == (before["run_id"], "FINISHED")
    assert server.history("train/loss") == [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]


def test_long_values_are_cut_and_many_are_sent_in_several_requests(server: Viewer, tmp_path: Path) -> None:
    log = EventLog(tmp_path / "news.jsonl")
    resume(log, 0, long="x" * 5001, fits="y" * 5000, empty="", **{f"key{number}": number for number in range(150)})
    for number in (1, 2):
        log.append("round", round=number, metrics={f"site.{site}": site + number for site in range(1001)})
    replay(log, server)
    run = server.run()
    assert len(run["params"]) == 4 + 150
    assert (run["params"]["long"], run["params"]["fits"]) == ("x" * 4999 + "…", "y" * 5000)
    assert run["metrics"] == {f"site/{site}": site + 2 for site in range(1001)}
    assert server.history("site/1000") == [(1, 1001), (2, 1002)]


def test_only_new_rounds_are_sent(stand_in: mlflow.StandIn, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    found = replay(log, stand_in)
    stand_in.requests.clear()
    found.step()
    assert stand_in.requests == [], "a heartbeat"
    builders.round_(log, 3, 0.125)
    found.step()
    (_, batch), (_, tags) = stand_in.requests
    assert {(metric["key"], metric["step"]) for metric in batch["metrics"]} == {("train/loss", 3), ("only/in.3", 3)}
    assert [tag["key"] for tag in tags["tags"]] == ["scaling_fl.last_event"]


def test_a_run_with_later_events_is_not_overwritten(stand_in: mlflow.StandIn, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    replay(log, stand_in)
    old = tmp_path / "old.jsonl"
    old.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-1]))
    found = Replay(old, target(stand_in))
    found.step()
    assert found.describe_trouble().startswith(f"MLflow at 127.0.0.1:{stand_in.port} has later events than {old}")


def test_the_experiment_is_the_one_that_the_variable_names(server: Viewer, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    target(server, MLFLOW_EXPERIMENT_NAME="my study").check()
    assert server.runs() == [], "no trace"
    for _ in range(2):
        replay(log, server, MLFLOW_EXPERIMENT_NAME="my study")
    first = server.run()["experiment_id"]
    replay(log, server)
    assert [run["info"]["experiment_id"] == first for run in server.runs()].count(True) == 1
    assert len(server.runs()) == 2


def test_a_server_that_does_not_serve_files_names_their_folder(tmp_path: Path) -> None:
    server = mlflow.StandIn(artifact_root=f"file://{tmp_path}/files")
    server.start()
    log = builders.job(tmp_path)
    replay(log, server)
    run = server.run()
    server.stop()
    folder = tmp_path / "files" / run["experiment_id"] / run["run_id"] / "artifacts"
    assert sorted(path.name for path in folder.iterdir()) == ["cout.txt", "metrics.csv", "shards.csv"]
    assert (folder / "shards.csv").read_bytes() == b"site,examples\n0,5\n1,4\n"


READ = """
import json, sys, mlflow
client = mlflow.MlflowClient(sys.argv[1])
(run,) = client.search_runs([client.get_experiment_by_name("scaling_fl").experiment_id])
points = client.get_metric_history(run.info.run_id, "train/loss")
files = [file.path for file in client.list_artifacts(run.info.run_id)]
text = open(client.download_artifacts(run.info.run_id, "shards.csv", sys.argv[2])).read()
print(json.dumps([run.info.status, run.data.params, [[p.step, p.value] for p in points], files, text]))
"""


@pytest.mark.parametrize("server", [pytest.param("itself", marks=pytest.mark.mlflow)], indirect=True)
def test_mlflows_own_client_reads_the_run(server: mlflow.Itself, tmp_path: Path) -> None:
    log = builders.job(tmp_path)
    log.append("completed")
    replay(log, server)
    words = [str(server.programs / "python"), "-c", READ, server.uri, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env={"MLFLOW_DISABLE_TELEMETRY": "true"})
    status, params, points, files, text = json.loads(done.stdout)
    assert (status, params) == ("FINISHED", {"job_name": "news", "num_rounds": "4"})
    assert points == [[1, 0.5], [2, 0.25]]
    assert (files, text) == (["cout.txt", "metrics.csv", "shards.csv"], "site,examples\n0,5\n1,4\n")
