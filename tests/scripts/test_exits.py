"""The command exits in time, even if the object store and MongoDB are down or don't answer."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builders
from tests.conftest import ROOT
from tests.line import Line
from tests.scripts.script import start, wait_for_row, workers_of

# Unanswered requests time out after 120 s. A command that ends earlier hasn't waited for one.
TIMEOUT = 115.0
# A sitecustomize.py that makes name resolution hang once the file $LOST exists.
HANGING_DNS = """
import os, socket, time
original = socket.getaddrinfo
def getaddrinfo(host, *args, **kwargs):
    if host == "localhost" and os.path.exists(os.environ["LOST"]):
        time.sleep(1000)
    return original(host, *args, **kwargs)
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture
def database(mongo: str) -> Iterator[Line]:
    proxy = Line(int(mongo.rpartition(":")[2]))
    yield proxy
    proxy.close()


@pytest.mark.parametrize("object_store", ["s3"], indirect=True)
@pytest.mark.parametrize(
    ("outage", "end"),
    [
        ("stalled", "SIGTERM"),
        ("down", "a worker is killed"),
        *(
            pytest.param(outage, end, marks=pytest.mark.thorough)
            for outage, end in (
                ("stalled", "SIGINT twice"),
                ("down", "SIGTERM"),
                ("unresolvable", "SIGTERM"),
                ("down", "SIGINT twice"),
                ("stalled", "a worker is killed"),
            )
        ),
    ],
)
def test_an_unreachable_store_does_not_delay_the_exit(
    line: Line, database: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outage: str, end: str
) -> None:
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")  # the default, as for users
    words = [
        "with", "site_ids=[-1,-1]", "num_rounds=99999", "task_name=csv", "text_column=body", "label_column=topic",
        f"train_path={builders.write_csv(tmp_path / 'train.csv', 60)}", "max_seq_len=16", "threads_per_site=1",
        f"test_path={builders.write_csv(tmp_path / 't.csv', 9, 1)}", f"model={builders.pretrained(tmp_path / 'model')}",
        "job_name=j", f"checkpoints_dir={os.environ['TEST_BUCKET']}/jobs/j", "checkpoint_every=99999",
    ]  # fmt: skip
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HANGING_DNS)
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
        line.down, line.stalled = outage != "stalled", outage == "stalled"
        database.stalled = outage == "stalled"
        if outage == "unresolvable":
            (tmp_path / "lost").touch()
        match end:
            case "SIGTERM":
                status, message = 128 + signal.SIGTERM, "run the same command again"
                process.terminate()
            case "SIGINT twice":
                status, message = 128 + signal.SIGINT, "run the same command again"
                os.killpg(process.pid, signal.SIGINT)  # to the whole process group, like a terminal
                time.sleep(2)
                assert process.poll() is None, "after one Ctrl-C, publishing may take any time"
                os.killpg(process.pid, signal.SIGINT)
            case _:
                status, message = 1, "ended: killed by SIGKILL; "
                os.kill(workers[1], signal.SIGKILL)
        rest = process.communicate(timeout=TIMEOUT)[0]
        builders.wait_for_end(children)
        assert process.returncode == status, rest
        assert message in rest.strip().splitlines()[-1]
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()


def test_a_refusal_does_not_wait_for_imports_in_the_background(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "torch.py").write_text("import time; time.sleep(1000)")
    process = start(tmp_path, "with", "demo", "num_rounds=-3", cold=True, PYTHONPATH=f"{tmp_path / 'site'}:{ROOT}")
    try:
        assert process.communicate(timeout=TIMEOUT)[0] == "Refused: num_rounds=-3: expected a whole number, 1 or more\n"
        assert process.returncode == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


# A sitecustomize.py that presses Ctrl-C when the command imports the module $AT.
CTRL_C = """
import os, signal, sys
at = os.environ["AT"]
def hook(event, arguments):
    global at
    if event == "import" and arguments[0] == at and sys.orig_argv[1].endswith("train_federated.py"):
        at = None
        os.killpg(0, signal.SIGINT)
sys.addaudithook(hook)
"""


@pytest.mark.parametrize("module", ["scaling_fl.config", "dotenv", "sacred", "git.repo", "scaling_fl.tracking.tracker"])
def test_an_interrupt_while_the_command_starts_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(CTRL_C)
    process = start(tmp_path, "with", "demo", cold=True, PYTHONPATH=str(tmp_path / "site"), AT=module)
    assert process.communicate()[0] == "interrupted\n"
    assert process.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["site"], "nothing is written"
