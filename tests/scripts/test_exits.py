"""The command ends in the promised time, even if the object store and MongoDB are down or don't answer."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builders
from tests.conftest import ROOT
from tests.line import Line
from tests.scripts.test_train_federated import start, wait_for_row, workers_of

# A request that isn't answered is given up after 120 s, and tried again: who ends before that hasn't waited for one.
UNANSWERED = 115.0
# Host names that no longer resolve once the file LOST exists.
NO_NAMES = """
import os, socket, time
plain = socket.getaddrinfo
def slow(host, *args, **kwargs):
    if host == "localhost" and os.path.exists(os.environ["LOST"]):
        time.sleep(1000)
    return plain(host, *args, **kwargs)
socket.getaddrinfo = slow
"""


@pytest.fixture
def database(mongo: str) -> Iterator[Line]:
    opened = Line(int(mongo.rpartition(":")[2]))
    yield opened
    opened.close()


@pytest.mark.parametrize("object_store", ["s3"], indirect=True)
@pytest.mark.parametrize(
    ("away", "end"),
    [
        ("stalled", "SIGTERM"),
        ("stalled", "SIGINT twice"),
        ("down", "a worker is killed"),
        *(
            pytest.param(away, end, marks=pytest.mark.thorough)
            for away, end in (
                ("down", "SIGTERM"),
                ("nameless", "SIGTERM"),
                ("down", "SIGINT twice"),
                ("stalled", "a worker is killed"),
            )
        ),
    ],
)
def test_an_unreachable_store_delays_no_exit(
    line: Line, database: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str, end: str
) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")  # as for users
    words = [
        "with", "site_ids=[-1,-1]", "num_rounds=99999", "task_name=csv", "text_column=body", "label_column=topic",
        f"train_path={builders.write_csv(tmp_path / 'train.csv', 60)}", "max_seq_len=16", "threads_per_site=1",
        f"test_path={builders.write_csv(tmp_path / 't.csv', 9, 1)}", f"model={builders.pretrained(tmp_path / 'model')}",
        "job_name=j", f"checkpoints_dir={os.environ['TEST_BUCKET']}/jobs/j", "checkpoint_every=99999",
    ]  # fmt: skip
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NO_NAMES)
    environ = {
        "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}", "LOST": str(tmp_path / "lost"),
        "AWS_ENDPOINT_URL": f"http://localhost:{line.port}",
        "SACRED_HOST": f"127.0.0.1:{database.port}", "SACRED_DATABASE": "lab",
    }  # fmt: skip
    process = start(tmp_path, *words, **environ)
    try:
        wait_for_row(process, 2)
        children = workers_of(process)
        workers = [pid for pid in children if "tokens.bin" in Path(f"/proc/{pid}/maps").read_text()]
        line.down, line.stalled = away != "stalled", away == "stalled"
        database.stalled = away == "stalled"
        if away == "nameless":
            (tmp_path / "lost").touch()
        match end:
            case "SIGTERM":
                status, said = 128 + signal.SIGTERM, "run the same command again to resume"
                process.terminate()
            case "SIGINT twice":
                status, said = 128 + signal.SIGINT, "run the same command again to resume"
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole process group
                time.sleep(2)
                assert process.poll() is None, "after one Ctrl-C it may take any time"
                os.killpg(process.pid, signal.SIGINT)
            case _:
                status, said = 1, "ended: killed by SIGKILL; "
                os.kill(workers[1], signal.SIGKILL)
        rest = process.communicate(timeout=UNANSWERED)[0]
        builders.wait_for_end(children)
        assert process.returncode == status, rest
        assert said in rest.strip().splitlines()[-1]
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
