import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling_fl import launch
from scaling_fl.errors import JobFailed, PeerLost, UserError
from tests import builders

Send = Callable[[dict[str, Any]], None]


def start(function: Callable[..., None], *jobs: tuple[Any, ...], folder: str = "/none") -> list[dict[str, Any]]:
    """Run a function of this module in one child per job; the events."""
    events: list[dict[str, Any]] = []
    names = [f"child {number}" for number in range(len(jobs))]
    launch.run(f"{__name__}:{function.__name__}", jobs, names, folder, events.append)
    return events


def speak(send: Send, number: int) -> None:
    send({"event": "hello", "number": number})
    print(f"text of {number}, ünï")
    sys.stderr.write(f"error of {number}\nbar 1/2\rbar 2/2\rdone {number}")
    os.write(1, b"\nfrom native code")


def test_events_and_output_of_every_child_arrive_without_progress_frames() -> None:
    events = start(speak, (0,), (1,))
    assert sorted(e["number"] for e in events if e["event"] == "hello") == [0, 1]
    for number in (0, 1):
        lines = [e["text"] for e in events if e["event"] == "output" and e["source"] == f"child {number}"]
        expected = {f"text of {number}, ünï", f"error of {number}", f"done {number}", "from native code"}
        assert set(lines) == expected


def fail(send: Send, how: str) -> None:
    if how == "wait for a peer":
        while True:
            signal.pause()
    if how == "lose the peer":
        raise PeerLost("the connection to another worker broke")
    if how == "raise":
        raise ZeroDivisionError("site arithmetic")
    if how == "refuse":
        raise UserError("learning_rate=7: too high")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raise", JobFailed, r"child 1 failed:\nTraceback (.|\n)*ZeroDivisionError: site arithmetic$"),
        ("refuse", UserError, r"^learning_rate=7: too high$"),
        ("exit", JobFailed, r"child 1 ended: it exited with status 3 without a word"),
        ("SIGKILL", JobFailed, r"child 1 ended: killed by SIGKILL; .*out of memory"),
        ("SIGSEGV", JobFailed, r"child 1 ended: killed by SIGSEGV; native code crashed"),
        ("lose the peer", PeerLost, r"child 1: the connection to another worker broke"),
    ],
)
def test_the_first_failure_ends_all_and_is_raised(how: str, kind: type[Exception], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=message):
        start(fail, ("wait for a peer",), (how,), ("wait for a peer",))
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("cause", ["raise", "SIGKILL"])
def test_a_lost_connection_is_not_named_where_there_is_another_cause(cause: str) -> None:
    with pytest.raises(JobFailed, match=r"child 2 (failed|ended)"):
        start(fail, ("lose the peer",), ("lose the peer",), (cause,))


def report_pid(send: Send, number: int) -> None:
    send({"event": "pid", "pid": os.getpid()})
    while True:
        signal.pause()


def orphan(send: Send, folder: str) -> None:
    """A launcher in a child: it starts two children of its own, says who they are, and is killed."""

    def on_event(event: dict[str, Any]) -> None:
        send(event)
        seen.append(event)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    seen: list[Any] = []
    import multiprocessing

    multiprocessing.process.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    multiprocessing.forkserver._forkserver = multiprocessing.forkserver.ForkServer()  # its own: it must go with it
    launch.run(f"{__name__}:report_pid", [(0,), (1,)], ["a", "b"], folder, on_event)


def test_children_die_with_their_launcher_and_take_the_work_folder_along(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    events: list[dict[str, Any]] = []
    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        launch.run(f"{__name__}:orphan", [(str(work),)], ["launcher"], "/none", events.append)
    pids = [event["pid"] for event in events if event["event"] == "pid"]
    assert len(pids) == 2
    builders.wait_for_end(pids)
    assert not work.exists()


def test_the_launcher_imports_no_torch() -> None:
    import subprocess

    code = "import sys, scaling_fl.launch, scaling_fl.tracking, scaling_fl.console; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def refuse_and_tidy_up(send: Send, marker: str) -> None:
    multiprocessing.util.Finalize(None, lambda: (time.sleep(0.3), Path(marker).touch()), exitpriority=1)
    raise UserError("no")


def test_a_child_that_refuses_may_tidy_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"):
        start(refuse_and_tidy_up, (str(tmp_path / "tidy"),))
    assert (tmp_path / "tidy").exists()


def _send_on(send: Send) -> None:
    while True:
        send({"event": "step"})
        time.sleep(0.01)


def test_an_interrupt_that_comes_while_a_finaliser_runs_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_interrupted", False)
    before = signal.signal(signal.SIGUSR1, launch.interrupt)

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)  # the handler runs here, and Python drops what it raises

    def finalise(event: dict[str, Any]) -> None:
        Finalised()

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            launch.run(f"{__name__}:_send_on", [()], ["one"], str(tmp_path / "none"), finalise)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert multiprocessing.active_children() == []
