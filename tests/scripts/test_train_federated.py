"""The command as users run it: real processes, real files, a MongoDB-wire server."""

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pymongo
import pytest
import transformers

from scaling_fl.checkpoint import store
from tests import builders, zygote
from tests.conftest import ROOT, SCRIPT, ObjectStore, clean_environment

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Arguments for a run of three sites with 34, 33 and 33 examples."""
    (tmp_path / "a folder").mkdir()
    train, test = (
        builders.write_csv(tmp_path / "a folder" / "train.csv", 100),
        builders.write_csv(tmp_path / "t.csv", 23, 1),
    )
    return [
        "with", "site_ids=[-1,-1,-1]", "num_rounds=3", "num_local_epochs=2", "task_name=csv", f"train_path={train}",
        f"test_path={test}", "text_column=body", "label_column=topic", f"model={builders.pretrained(tmp_path / 'model')}",
        "batch_size=8", "val_batch_size=5", "max_seq_len=16", "learning_rate=0.01", "threads_per_site=1",
    ]  # fmt: skip


def state_of(folder: Path, round_: int) -> dict[str, np.ndarray]:
    return store.read_state(folder / f"round-{round_:06d}.safetensors")[0]


def assert_bitwise_equal(first: Path, second: Path, round_: int) -> None:
    a, b = state_of(first, round_), state_of(second, round_)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].tobytes() == b[name].tobytes(), name
    model = "model/model.safetensors"
    assert (first / model).read_bytes() == (second / model).read_bytes()


def start(folder: Path, *arguments: str, cold: bool = False, **environ: str) -> "subprocess.Popen[str]":
    """Start the command in its own session. Its output, with standard error, can be read line by line."""
    return zygote.popen(
        *arguments, cold=cold,
        cwd=folder, env=clean_environment() | {"PYTHONUNBUFFERED": "1"} | environ, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for_row(process: "subprocess.Popen[str]", round_: int, text: str = "") -> str:
    """Read the output up to the table's row of a round; return `text` and everything read."""
    assert process.stdout is not None
    for line in process.stdout:
        text += line
        if line.split()[:1] == [str(round_)] and text.count("round    loss"):
            return text
    pytest.fail(f"no row of round {round_} in:\n{text}")


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    """All processes of the job except the launcher, found by their session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) == process.pid and int(folder.name) != process.pid:
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                found += [int(folder.name)] * (state != "Z")
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def test_sacreds_commands_start_nothing_and_write_nothing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("learning_rate: 1e-2\nprecision: auto\n")  # a text, for YAML
    words = ["demo", "my.yaml", "job_name=20261122_230300", "num_rounds=2"]
    before = sorted(tmp_path.rglob("*"))
    shown = command("print_config", "with", *words, cold=True)
    assert shown.returncode == 0, shown.stderr
    for line in (
        "job_name = '20261122_230300'  (default: None)\n", "site_ids = [0, 0, 0, 0]", "num_rounds = 2  (default: 10)\n",
        "model = 'tiny'", "num_sites = 4\n", "partition = 'iid'\n", "learning_rate = 0.01  (default: 5e-05)\n",
    ):  # fmt: skip
        assert line in shown.stdout
    assert re.search(r"^  precision = '(fp32|bf16|fp16)'$", shown.stdout, re.MULTILINE)
    assert re.search(r"^  threads_per_site = [1-9]", shown.stdout, re.MULTILINE)
    assert "\x1b" not in shown.stdout + shown.stderr, "colours in a pipe"
    named = command("print_named_configs")
    assert named.returncode == 0
    assert "demo" in named.stdout
    assert "paper" in named.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_task_is_shown_without_a_site_or_a_record(command: Command, words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    shown = command("show_task", *words, "max_seq_len=7")
    assert shown.returncode == 0, shown.stderr
    assert "task csv: 100 training and 23 test rows" in shown.stdout
    assert "over max_seq_len=7" in shown.stdout
    assert "training examples" in shown.stdout
    assert "site" not in shown.stdout
    refused = command("show_task", *words, "label_column=kind")
    assert "Failed after" not in refused.stdout + refused.stderr, "a refusal isn't a failure"
    assert refused.returncode == 1
    assert "label_column='kind': " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_shards_are_shown_without_a_site_or_a_record(command: Command, words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    more = ["partition=dirichlet", "alpha=0.1", "num_sites=9", "validation_fraction=0.1"]
    shown = command("show_shards", *words, *more)
    assert shown.returncode == 0, shown.stderr
    assert "partition=dirichlet alpha=0.1: 9 sites, 90 training rows; 10 more are held back" in shown.stdout
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.strip()[:1].isdigit()][:9] == list(
        "012345678"
    )
    assert "sites on cpu" not in shown.stdout
    refused = command("show_shards", *words, "partition=column", "partition_column=town")
    assert refused.returncode == 1
    assert "partition_column='town': " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(tmp_path.rglob("*")) == before


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
        cold=True, SACRED_HOST=mongo, SACRED_DATABASE="lab",
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

    database = pymongo.MongoClient(f"mongodb://{mongo}", serverSelectionTimeoutMS=5000)["lab"]
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


def test_a_killed_worker_ends_the_job_and_is_named_last(words: list[str], tmp_path: Path, command: Command) -> None:
    words += ["num_rounds=9999", "job_name=live"]
    process = start(tmp_path, *words)
    text = wait_for_row(process, 1)
    assert "3 sites on cpu" in text
    second = command(*words)
    assert second.returncode == 1
    assert (
        f"is in progress on this machine, recorded in runs/1 (process {process.pid}); wait for it to end"
        in second.stderr
    )
    # Only workers map the token store, not the fork server or the resource tracker.
    workers = [pid for pid in workers_of(process) if "tokens.bin" in Path(f"/proc/{pid}/maps").read_text()]
    assert len(workers) == 3
    children = workers_of(process)
    os.kill(workers[1], signal.SIGKILL)
    rest = process.communicate()[0]
    assert process.returncode == 1
    last = rest.strip().splitlines()[-1]
    assert "(cpu) ended: killed by SIGKILL" in last
    assert "out of memory" in last
    builders.wait_for_end(children)
    run = json.loads((tmp_path / "runs" / "1" / "run.json").read_text())
    assert run["status"] == "FAILED"
    assert "killed by SIGKILL" in "".join(run["fail_trace"])
    output = (tmp_path / "runs" / "1" / "cout.txt").read_text()
    assert "round    loss" in output, "the output before the failure is kept"
    assert last.removeprefix("Failed: ") in output
    assert "run record   runs/1\n" in rest


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_all_processes_and_is_recorded(words: list[str], tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, *words, "num_rounds=9999", "checkpoints_dir=None", cold=how is signal.SIGTERM)
    text = wait_for_row(process, 1)
    children = workers_of(process)
    if how is signal.SIGTERM:
        os.kill(process.pid, how)
    else:
        os.killpg(process.pid, how)  # to the whole process group, like a terminal
    rest = process.communicate()[0]
    assert process.returncode == 128 + how
    assert "note: checkpoints_dir=None: neither checkpoints nor the final model are saved\n" in text
    assert "stopping: nothing is saved, because of checkpoints_dir=None" in rest
    assert "interrupted; nothing is saved, because of checkpoints_dir=None" in rest
    assert not (tmp_path / "checkpoints").exists()
    assert "Traceback" not in rest
    builders.wait_for_end(children)
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "INTERRUPTED"


def test_an_interrupt_that_also_ends_the_reader_of_the_output_is_still_recorded_as_one(
    words: list[str], tmp_path: Path
) -> None:
    process = start(tmp_path, *words, "num_rounds=9999", "checkpoint_every=9999", "job_name=tee", "checkpoints_dir=out")
    wait_for_row(process, 2)
    assert process.stdout is not None
    process.stdout.close()  # like `| tee log`
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    assert json.loads((tmp_path / "runs" / "1" / "run.json").read_text())["status"] == "INTERRUPTED"
    assert len(list((tmp_path / "out").glob("round-*.safetensors"))) == 1, "the last complete round is published"


def test_closing_the_terminal_ends_the_job_after_publishing_the_last_complete_round(
    words: list[str], tmp_path: Path
) -> None:
    """The shell and the kernel both send SIGHUP for a closed terminal; the second one must not count."""
    terminal, shell_end = pty.openpty()
    shell = subprocess.Popen(
        ["setsid", "--ctty", "bash", "--norc", "-i"],
        stdin=shell_end,
        stdout=shell_end,
        stderr=shell_end,
        cwd=tmp_path,
        env=clean_environment(),
    )
    os.close(shell_end)
    keys = ["num_rounds=9999", "checkpoint_every=9999", "job_name=closed", "checkpoints_dir=out"]
    os.write(terminal, f"{shlex.join([sys.executable, str(SCRIPT), *zygote.last_values([*words, *keys])])}\n".encode())
    text = ""
    while not re.search(r" 2  +\d\.\d{4} ", text):
        text += os.read(terminal, 4096).decode(errors="replace")
    os.close(terminal)
    shell.wait()
    record = tmp_path / "runs" / "1" / "run.json"
    deadline = time.monotonic() + 240
    while json.loads(record.read_text())["status"] == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert json.loads(record.read_text())["status"] == "INTERRUPTED"
    assert len(list((tmp_path / "out").glob("round-*.safetensors"))) == 1


def test_parameters_that_are_no_longer_finite_end_the_job(command: Command, words: list[str], tmp_path: Path) -> None:
    done = command(*words, "optimiser=sgd", "learning_rate=1e30", "checkpoints_dir=out")
    assert done.returncode == 1
    assert (
        "are no longer finite after local training, or moved by 16384 or more; lower learning_rate"
        in done.stderr.strip().splitlines()[-1]
    )
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["events.jsonl"], "no checkpoint with broken parameters"


def test_the_demo_learns_without_any_download(command: Command, tmp_path: Path) -> None:
    done = command("with", "demo", "num_rounds=4", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    metrics: dict[str, Any] = json.loads((tmp_path / "runs" / "1" / "metrics.json").read_text())
    accuracy = metrics["validation.accuracy"]["values"]
    assert accuracy[0] < 0.4
    assert accuracy[-1] > 0.5, "far above chance, 0.3 at best"
    assert accuracy[-1] > accuracy[1]
