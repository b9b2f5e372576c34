"""Signals that reach jobs in containers."""

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.containers,
    pytest.mark.timeout(2400),
    pytest.mark.usefixtures("image", "no_container_is_left"),
]
ENDLESS = ["scripts/train_federated.py", "with", "demo", "num_rounds=1000", "job_name=j", "checkpoints_dir=out"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_job_that_is_asked_to_stop_publishes_and_returns_the_signals_status(
    copy: Path, folder: Path, environ: dict[str, str], number: signal.Signals, status: int
) -> None:
    job = subprocess.Popen(
        [str(copy / "run-local.sh"), *ENDLESS], cwd=folder, env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    output = _read_until(job, re.compile(r" +2  \d\.\d{4} "))
    os.killpg(job.pid, number)
    output += job.communicate(timeout=300)[0]
    assert job.returncode == status, output
    assert output.count("stopping: saving the last complete round first") == 1, output
    assert list((folder / "out").glob("round-*.safetensors"))


COUNT = """
import signal, time
received = []
for number in (1, 2, 15):
    signal.signal(number, lambda number, frame: received.append(number))
print("ready", flush=True)
end = time.monotonic() + 4
while time.monotonic() < end:
    time.sleep(0.1)
print(received)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_job_once(
    copy: Path, folder: Path, environ: dict[str, str], number: signal.Signals
) -> None:
    """Sent to the whole process group, like a terminal does. A second signal would end the job without publishing."""
    job = subprocess.Popen(
        [str(copy / "run-local.sh"), "-c", COUNT], cwd=folder, env=environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    _read_until(job, re.compile("ready"))
    os.killpg(job.pid, number)
    output = job.communicate(timeout=300)[0]
    assert output.split() == [f"[{number.value}]"]


def _read_until(job: "subprocess.Popen[str]", pattern: "re.Pattern[str]") -> str:
    assert job.stdout is not None
    output = ""
    for line in job.stdout:
        output += line
        if pattern.match(line):
            return output
    raise AssertionError(output)


def test_ctrl_c_in_a_terminal_reaches_the_job(copy: Path, folder: Path, environ: dict[str, str]) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(copy / "run-local.sh", [str(copy / "run-local.sh"), *ENDLESS], environ)
    output, deadline, pressed = b"", time.monotonic() + 240, False
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while time.monotonic() < deadline and select.select([terminal], [], [], 60)[0]:
            output += os.read(terminal, 65536)
            if not pressed and re.search(rb" 2  \d\.\d{4} ", output):
                os.write(terminal, b"\x03")
                pressed = True
    if not pressed:
        os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130, output.decode()
    assert b"stopping: saving the last complete round first" in output
    os.close(terminal)


def test_a_signal_before_the_job_runs_is_not_lost(copy: Path, folder: Path, environ: dict[str, str]) -> None:
    for delay in (0.3, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6):  # before, and just as, the container starts
        job = subprocess.Popen(
            [str(copy / "run-local.sh"), "-c", "import time; time.sleep(100)"], cwd=folder, env=environ,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) in (
            143,
            -signal.SIGTERM,
        )  # which shells report as 143: bash had not begun the script
