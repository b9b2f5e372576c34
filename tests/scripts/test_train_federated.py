"""The command as users run it: real processes, real files, a MongoDB-wire server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pymongo
import pytest
import transformers

from scaling_fl.checkpoint import store
from tests import builders
from tests.conftest import ROOT, SCRIPT, ObjectStore, clean_environment
from tests.scripts.script import Command, assert_bitwise_equal, start, state_of, wait_for_row, workers_of


def test_env_file_is_read_and_variables_already_set_take_precedence(words: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for folder in ("scripts", "scaling_fl"):
        shutil.copytree(SCRIPT.parent.parent / folder, copy / folder)
    (copy / ".env").write_text("SACRED_DATABASE='a # lab'\n# SACRED_HOST=h\n")
    environ = {name: value for name, value in clean_environment().items() if not name.startswith("SACRED_")}

    def run(**more: str) -> str:
        argv = [sys.executable, str(copy / "scripts" / "train_federated.py"), *words]
        done = subprocess.run(argv, cwd=tmp_path, env=environ | more, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        return done.stderr

    assert "Refused: SACRED_HOST is not set, but other SACRED_ variables are; set it in .env" in run()
    assert "Refused: SACRED_DATABASE is not set" in run(SACRED_DATABASE="", SACRED_HOST="h")


def test_a_run_is_recorded_in_files_and_mongodb_and_its_model_is_usable(
    command: Command, words: list[str], tmp_path: Path, mongo: str
) -> None:
    (tmp_path / "runs" / "1").mkdir(parents=True)  # MongoDB's first run will be number 1
    done = command(
        *words, "job_name=20261122_230300", "checkpoints_dir=out", "author=1e5", "-c", "a comment", "-n", "news",
        "-m", f"{mongo}:second", cold=True, SACRED_HOST=mongo, SACRED_DATABASE="lab",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    record = tmp_path / "runs" / "2"
    config = json.loads((record / "config.json").read_text())
    assert (config["job_name"], config["author"], config["site_ids"]) == ("20261122_230300", "1e5", [-1, -1, -1])
    run = json.loads((record / "run.json").read_text())
    sources = {name: (record.parent / stored).read_text() for name, stored in run["experiment"]["sources"]}
    program = ("scripts/train_federated.py", *(str(path.relative_to(ROOT)) for path in ROOT.glob("scaling_fl/**/*.py")))
    assert sources == {name: (ROOT / name).read_text() for name in program}
    assert (run["status"], run["meta"]["comment"], run["experiment"]["name"]) == ("COMPLETED", "a comment", "news")

    metrics = json.loads((record / "metrics.json").read_text())
    assert metrics["validation.accuracy"]["steps"] == [0, 1, 2, 3]
    assert metrics["train.loss"]["steps"] == [1, 2, 3]
    for name in (
        "train.accuracy", "train.worst_site.accuracy", "train.best_site.loss", "site.2.train.loss",
        "examples_per_second", "seconds.train", "seconds.aggregate", "seconds.idle", "seconds.checkpoint",
    ):  # fmt: skip
        assert metrics[name]["steps"] == [1, 2, 3], name
        assert all(type(value) is float for value in metrics[name]["values"])
    assert metrics["validation.macro_f1"]["values"][-1] > metrics["validation.macro_f1"]["values"][0]
    info = json.loads((record / "info.json").read_text())
    assert [row["examples"] for row in info["shards"]] == [34, 33, 33]
    assert info["files"]["model"] == "out/model"
    captured = (record / "cout.txt").read_text()
    assert "validation" not in captured
    assert "round    loss" in captured
    assert "\x1b" not in captured
    assert "\r" not in captured

    client: Any = pymongo.MongoClient(f"mongodb://{mongo}", serverSelectionTimeoutMS=5000)
    assert client["second"].runs.find_one()["status"] == "COMPLETED"
    database = client["lab"]
    entry = database.runs.find_one({"config.job_name": "20261122_230300"})
    assert entry is not None
    assert (entry["_id"], entry["status"]) == (1, "COMPLETED")
    assert "round    loss" in entry["captured_out"]
    stored = database.metrics.find_one({"run_id": 1, "name": "validation.accuracy"})
    assert stored is not None
    assert stored["values"] == metrics["validation.accuracy"]["values"]

    events = [json.loads(line) for line in (tmp_path / "out" / "events.jsonl").read_text().splitlines()]
    kinds = [event["event"] for event in events if event["event"] not in ("source", "output")]
    assert sorted(kinds) == sorted(
        ["created", "started", "shards", "round", *["round", "checkpoint"] * 3, "model", "confusion", "completed"]
    )
    assert (kinds[:4], kinds[-1]) == (["created", "started", "shards", "round"], "completed")
    assert (tmp_path / "runs" / "_events" / "20261122_230300.jsonl").read_text().splitlines()[-1] == json.dumps(
        events[-1]
    )

    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["events.jsonl", "model", "round-000003.safetensors"]
    header = store.read_state(tmp_path / "out" / "round-000003.safetensors")[1]
    assert (header["round"], header["job_name"], header["threads"]) == (3, "20261122_230300", 1)
    assert header["config"] == config
    assert header["metrics"]["validation.accuracy"] == stored["values"][-1]

    classify = transformers.pipeline("text-classification", str(tmp_path / "out" / "model"), device="cpu")
    texts, labels = builders.texts_and_labels(23, seed=1)
    right = sum(answer["label"] == f"class {label}" for answer, label in zip(classify(texts), labels, strict=True))
    assert right / 23 == pytest.approx(stored["values"][-1]), "the exported model is the model that was evaluated"


def test_all_sites_start_from_the_same_parameters_including_the_new_head(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    # The steps are too small to change anything: only a site with other initial parameters could move the mean.
    done = command(*words, "optimiser=sgd", "learning_rate=1e-30", "num_rounds=1", "checkpoints_dir=out", "-u")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists(), "-u: unobserved"
    from scaling_fl.config.schema import Config
    from scaling_fl.models import loading

    names = ("class 0", "class 1", "class 2")
    expected = loading.load_model(str(tmp_path / "model"), names, [], 16, Config().seed).module.state_dict()
    for name, array in state_of(tmp_path / "out", 1).items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=0, atol=1e-25, err_msg=name)


def test_a_killed_job_resumes_bitwise_and_a_finished_one_says_so(
    command: Command, words: list[str], tmp_path: Path
) -> None:
    words.append("job_name=lost")
    process = start(tmp_path, *words, "num_rounds=9999", "checkpoints_dir=broken")
    wait_for_row(process, 2)
    children = workers_of(process)
    assert len(children) >= 3
    process.kill()
    process.communicate()
    builders.wait_for_end(children)
    assert not (tmp_path / "broken" / "model").exists()
    rounds = store.CheckpointStore(str(tmp_path / "broken")).rounds()
    assert rounds[0] >= 1
    last = rounds[0] + 2
    words.append(f"num_rounds={last}")
    undisturbed = command(*words, "checkpoints_dir=whole", "job_name=undisturbed", "-F", "elsewhere")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert (tmp_path / "elsewhere" / "1" / "run.json").exists()

    resumed = command(*words, "checkpoints_dir=broken")
    assert resumed.returncode == 0, resumed.stderr
    assert f"job lost resumes after round {rounds[0]}" in resumed.stdout
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["1", "2", "_events", "_sources"]
    metrics = json.loads((tmp_path / "runs" / "1" / "metrics.json").read_text())
    assert metrics["train.loss"]["steps"] == list(range(1, last + 1)), "one record, without gaps"
    assert_bitwise_equal(tmp_path / "whole", tmp_path / "broken", last)
    assert [p.name for p in (tmp_path / "broken").iterdir() if p.name.startswith(".")] == []

    again = command(*words, "checkpoints_dir=broken")
    assert again.returncode == 0
    assert f"job lost is finished: {last} rounds are done" in again.stdout
    changed = command(*words, "checkpoints_dir=broken", "learning_rate=0.02", "num_local_epochs=1")
    assert changed.returncode == 1
    assert "num_local_epochs was 2, is now 1; learning_rate was 0.01, is now 0.02" in changed.stderr
    other_name = command(*words, "checkpoints_dir=broken", "job_name=other")
    assert other_name.returncode == 1
    assert "it holds the checkpoints of job lost; set job_name=lost to resume it" in other_name.stderr
    builders.write_csv(tmp_path / "t.csv", 22, seed=1)
    other_data = command(*words, "checkpoints_dir=broken", f"num_rounds={last + 1}")
    assert other_data.returncode == 1
    assert "job_name=lost: the data have changed since the job started" in other_data.stderr


def test_a_job_keeps_its_data_and_checkpoints_in_an_object_store(
    command: Command, words: list[str], tmp_path: Path, object_store: ObjectStore
) -> None:
    bucket, environ, fs = object_store
    fs.put_file(str(tmp_path / "a folder" / "train.csv"), f"{bucket}/data/train.csv")
    words += [f"train_path={bucket}/data/train.csv", "job_name=remote"]
    in_store = [*words, f"checkpoints_dir={bucket}/jobs/remote"]
    first = command(*in_store, "num_rounds=1", **environ)
    assert first.returncode == 0, first.stderr
    shutil.rmtree(tmp_path / "runs")  # as if on another machine
    resumed = command(*in_store, "num_rounds=2", **environ)
    assert resumed.returncode == 0, resumed.stderr
    assert "job remote resumes after round 1" in resumed.stdout
    assert f"{bucket}/jobs/remote/model" in resumed.stdout
    finished = command(*in_store, "num_rounds=2", **environ)
    assert "job remote is finished: 2 rounds are done" in finished.stdout

    names = sorted(path.rsplit("/", 1)[-1] for path in fs.ls(f"{bucket}/jobs/remote", detail=False))
    assert names == ["events.jsonl", "model", "round-000002.safetensors"]
    events = [json.loads(line)["event"] for line in fs.cat_file(f"{bucket}/jobs/remote/events.jsonl").splitlines()]
    assert events.count("started") == events.count("completed") == 2, "the first machine's events are kept"
    assert events.count("round") == 1 + 1 + 1
    on_disk = command(*words, "checkpoints_dir=local", "job_name=local", "num_rounds=2", **environ)
    assert on_disk.returncode == 0, on_disk.stderr
    (tmp_path / "fetched" / "model").mkdir(parents=True)
    for name in ("round-000002.safetensors", "model/model.safetensors"):
        fs.get_file(f"{bucket}/jobs/remote/{name}", str(tmp_path / "fetched" / name))
    assert_bitwise_equal(tmp_path / "local", tmp_path / "fetched", 2)


def test_the_demo_learns_without_any_download(command: Command, tmp_path: Path) -> None:
    done = command("with", "demo", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    metrics: dict[str, Any] = json.loads((tmp_path / "runs" / "1" / "metrics.json").read_text())
    accuracy = metrics["validation.accuracy"]["values"]
    assert accuracy[0] < 0.4
    assert accuracy[-1] > 0.5, "far above chance, 0.3 at best"
    assert accuracy[-1] > accuracy[1]
