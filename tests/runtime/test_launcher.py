import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.errors import JobFailed, PeerLost, UserError
from scaling_fl.progress import waiting
from scaling_fl.runtime import launcher, signals
from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.control_link import ControlLink
from tests import builders
from tests.conftest import free_port
from tests.tracking.builders import plan

Send = Callable[[dict[str, Any]], None]


def start(function: Callable[..., None], *jobs: tuple[Any, ...], folder: str = "/none") -> list[dict[str, Any]]:
    """Run a function of this module in one child per job; return the events."""
    events: list[dict[str, Any]] = []
    names = [f"child {number}" for number in range(len(jobs))]
    launcher.run_children(f"{__name__}:{function.__name__}", jobs, names, folder, events.append)
    return events


def print_a_lot(send: Send, number: int) -> None:
    send({"event": "hello", "number": number})
    print(f"text of {number}, ünï")
    sys.stderr.write(f"error of {number}\nbar 1/2\rbar 2/2\rdone {number}")
    os.write(1, b"\nfrom native code")


def test_events_and_output_of_every_child_arrive_without_progress_bar_frames() -> None:
    events = start(print_a_lot, (0,), (1,))
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
        print("lost", flush=True)
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
        ("exit", JobFailed, r"child 1 ended: exit status 3, without a message"),
        ("SIGKILL", JobFailed, r"child 1 ended: killed by SIGKILL; .*out of memory"),
        ("SIGSEGV", JobFailed, r"child 1 ended: killed by SIGSEGV; native code crashed"),
        ("lose the peer", PeerLost, r"child 1: the connection to another worker broke"),
    ],
)
def test_the_first_failure_ends_all_children_and_is_raised(how: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        start(fail, ("wait for a peer",), (how,), ("wait for a peer",))


@pytest.mark.parametrize("cause", ["raise", "SIGKILL"])
def test_any_other_cause_takes_precedence_over_a_lost_connection(cause: str) -> None:
    with pytest.raises(JobFailed, match=r"child 2 (failed|ended)"):
        start(fail, ("lose the peer",), ("lose the peer",), (cause,))


def test_the_cause_on_another_node_takes_precedence_over_a_lost_connection_here() -> None:
    """Node 1's only child loses its connection and ends. Node 1 hasn't finished, and waits for the cause."""
    ended, port = threading.Event(), free_port()

    def node_0() -> int:
        link = ControlLink(Node(0, 2, "127.0.0.1", port), print)
        (peer,) = link.peers
        link.begin_phase()
        assert ended.wait(240)
        deadline = time.monotonic() + 1
        while not peer.done and time.monotonic() < deadline:
            peer.receive(pytest.fail)
        link.announce_end(JobFailed("a bug"))
        link.close()
        return peer.done

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "output":
            ended.set()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(node_0)
        link = ControlLink(Node(1, 2, "127.0.0.1", port), print)
        with pytest.raises(JobFailed, match=r"^on node 0 \(.*\): a bug$"):
            launcher.run_children(f"{__name__}:fail", [("lose the peer",)], ["child"], "/none", on_event, link=link)
        link.close()
        assert done.result(240) == 0


def report_pid(send: Send, number: int) -> None:
    send({"event": "pid", "pid": os.getpid()})
    while True:
        signal.pause()


def orphan(send: Send, folder: str) -> None:
    """Run a launcher in a child: it starts two children, reports their pids, and kills itself."""

    def on_event(event: dict[str, Any]) -> None:
        send(event)
        seen.append(event)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    seen: list[Any] = []
    import multiprocessing

    process_config = multiprocessing.process.current_process()._config  # type: ignore[attr-defined]
    process_config |= {"daemon": False, "tempdir": tempfile.mkdtemp(dir=Path(folder).parent, prefix="pymp-")}
    multiprocessing.forkserver._forkserver = (
        multiprocessing.forkserver.ForkServer()
    )  # a new one, which must end with this process
    launcher.run_children(f"{__name__}:report_pid", [(0,), (1,)], ["a", "b"], folder, on_event)


def test_children_die_with_their_launcher_and_remove_the_work_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    events: list[dict[str, Any]] = []
    with pytest.raises(JobFailed, match="killed by SIGKILL"):
        launcher.run_children(f"{__name__}:orphan", [(str(work),)], ["launcher"], "/none", events.append)
    pids = [event["pid"] for event in events if event["event"] == "pid"]
    assert len(pids) == 2
    builders.wait_for_end(pids)
    assert list(tmp_path.iterdir()) == [], "the work folder and the fork server's folder are removed"


def test_the_launcher_does_not_import_torch() -> None:
    import subprocess

    modules = "scaling_fl.runtime.launcher, scaling_fl.tracking.destinations, scaling_fl.tracking.tracker, scaling_fl.checkpoint.lease"
    code = f"import sys, scaling_fl.tracking.console, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def refuse_and_clean_up(send: Send, marker: str) -> None:
    multiprocessing.util.Finalize(None, lambda: (time.sleep(0.3), Path(marker).touch()), exitpriority=1)
    raise UserError("no")


def test_a_child_that_refuses_may_clean_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no"):
        start(refuse_and_clean_up, (str(tmp_path / "cleaned up"),))
    assert (tmp_path / "cleaned up").exists()


def _send_for_ever(send: Send) -> None:
    while True:
        send({"event": "step"})
        time.sleep(0.01)


def test_an_interrupt_during_a_finaliser_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    before = signal.signal(signal.SIGUSR1, signals._receive)

    class Finalised:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.1)  # the signal handler runs here, and Python drops its exception

    def finalise(event: dict[str, Any]) -> None:
        Finalised()

    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            launcher.run_children(f"{__name__}:_send_for_ever", [()], ["one"], str(tmp_path / "none"), finalise)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert multiprocessing.active_children() == []


def get_stuck(send: Any, how: str) -> None:
    send({"event": "hello"})
    if how == "asleep":
        time.sleep(1000)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    send.waiting = how != "busy"
    while True:
        if how != "waiting":
            send.progress()
        time.sleep(0.05)


def pause(send: Any, seconds: float) -> None:
    time.sleep(seconds)


def test_a_process_under_a_debugger_never_counts_as_hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALING_FL_DEBUG", "1")
    launcher.run_children(
        f"{__name__}:pause", [(2,)], ["one"], str(tmp_path / "none"), lambda event: None, stall_timeout=0.5
    )
    monkeypatch.delenv("SCALING_FL_DEBUG")
    with pytest.raises(JobFailed, match="one made no progress"):
        launcher.run_children(
            f"{__name__}:pause", [(1000,)], ["one"], str(tmp_path / "none"), lambda event: None, stall_timeout=0.5
        )


@pytest.mark.parametrize(
    ("children", "message"),
    [
        (("asleep", "waiting", "busy"), r"child 0 made no progress for 5 s and counts as hung.*raise stall_timeout(.|\n)*"
                                        r"File .*test_launcher\.py., line \d+ in get_stuck"),
        (("busy", "stopped", "waiting"), r"child 1 made no progress for 5 s .*It is suspended, so it can't print its stack trace"),
        (("waiting", "waiting"), r"child [01] made no progress for 5 s"),
    ],
)  # fmt: skip
def test_a_child_without_progress_ends_the_job_with_its_stack_trace(children: tuple[str, ...], message: str) -> None:
    names = [f"child {number}" for number in range(len(children))]
    with pytest.raises(JobFailed, match=message):
        launcher.run_children(
            f"{__name__}:get_stuck", [(how,) for how in children], names, "/none", lambda event: None, 5.0
        )
    assert multiprocessing.active_children() == []


def progress_or_wait(send: Any, number: int) -> None:
    if number == 0:
        for _ in range(50):
            time.sleep(0.1)
            send.progress()
    else:
        send.waiting = True
        time.sleep(5)


def test_waiting_for_a_worker_that_makes_progress_does_not_count_as_hung() -> None:
    launcher.run_children(
        f"{__name__}:progress_or_wait", [(0,), (1,)], ["a", "b"], "/none", lambda event: None, stall_timeout=4.0
    )


def wait_for_something_external(send: Any) -> None:
    with waiting(send):
        time.sleep(5)
    time.sleep(0.5)


def test_the_stall_timeout_restarts_after_an_external_wait() -> None:
    launcher.run_children(
        f"{__name__}:wait_for_something_external", [()], ["a"], "/none", lambda event: None, stall_timeout=4.0
    )


def publish_on_stop(send: Any, how: str) -> None:
    def stop() -> None:
        send({"event": "said", "text": "published"})
        if how == "obeys":
            send({"event": "stopped"})

    send.on_stop = stop
    send({"event": "ready"})
    while True:
        signal.pause()


@pytest.mark.parametrize(
    ("how", "stops", "messages"),
    [
        ("obeys", [signal.SIGINT], ["stopping: saving the last complete round first", "published"]),
        ("hangs", [signal.SIGTERM], ["stopping: saving the last complete round first", "published"]),
        ("hangs", [signal.SIGINT, signal.SIGINT], ["stopping: saving the last complete round first"]),
    ],
)
def test_the_first_signal_publishes_and_the_second_ends_the_job_at_once(
    how: str, stops: list[signal.Signals], messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(signals, "_SAVE_GRACE", 1.0)
    before = {stop: signal.getsignal(stop) for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    events: list[dict[str, Any]] = []

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        if event["event"] == "ready":
            os.kill(os.getpid(), stops[0])
        if event.get("text") == "stopping: saving the last complete round first" and len(stops) > 1:
            os.kill(os.getpid(), stops[1])

    try:
        signals.install()
        with pytest.raises(KeyboardInterrupt), signals.graceful_stop():
            launcher.run_children(
                f"{__name__}:publish_on_stop", [(how,)], ["child"], "/none", on_event,
                stop_note="stopping: saving the last complete round first",
            )  # fmt: skip
        assert signals.exit_status() == 128 + stops[0]
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert [event["text"] for event in events if event["event"] == "said"] == messages
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("checkpoints_dir", "node", "note"),
    [
        ("out", 0, "stopping: saving the last complete round first"),
        (None, 0, "stopping: nothing is saved, because of checkpoints_dir=None"),
        (None, 1, "stopping: asking node 0 to stop the job"),  # node 0 alone has checkpoints_dir
    ],
)
def test_the_note_at_a_stop_signal_says_what_is_saved(
    checkpoints_dir: str | None, node: int, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(launcher, "run_children", lambda *args, stop_note: notes.append(stop_note))
    launcher.train(plan(checkpoints_dir, node=node, nodes=(0, 1)), pytest.fail)
    assert notes == [note]


def wait_for(send: Any, file: str) -> None:
    send({"event": "hello"})
    while not Path(file).exists():
        time.sleep(0.01)


def test_a_launcher_that_was_suspended_does_not_call_its_children_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []
    suspensions = [5.0]  # seconds; longer than the stall time-out

    def wait_after_suspension(*args: Any) -> list[Any]:
        if not suspensions:
            (tmp_path / "awake").touch()
        if events and suspensions:
            time.sleep(suspensions.pop())
        return wait(*args)

    wait = launcher.wait
    monkeypatch.setattr(launcher, "wait", wait_after_suspension)
    launcher.run_children(
        f"{__name__}:wait_for", [(str(tmp_path / "awake"),)], ["child"], "/none", events.append, stall_timeout=4.0
    )
    assert not suspensions


def test_a_signal_while_the_fork_server_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    before = {stop: signal.getsignal(stop) for stop in signals.STOP_SIGNALS}

    def ensure_running() -> None:
        signal.raise_signal(signal.SIGTERM)  # to this thread, because other threads don't block it
        done.append("started")

    done: list[str] = []
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", ensure_running)
    try:
        signals.install()
        with pytest.raises(KeyboardInterrupt):
            launcher.start_fork_server()
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert done == ["started"], "the signal is handled afterwards"
    assert os.environ.get("PYTHONPATH") == path, "the environment is restored after any exception"


def test_a_temporary_folder_too_long_for_a_socket_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def ensure_running() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", ensure_running)
    launcher.start_fork_server()  # an early start ignores the error; `run_children` reports it
    with pytest.raises(
        UserError, match=r"TMPDIR=/.*: can't create a socket there \(AF_UNIX path too long\); choose another"
    ):
        start(print_a_lot, (0,))


def test_a_signal_while_children_are_being_ended_leaves_no_child_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    before = {stop: signal.getsignal(stop) for stop in signals.STOP_SIGNALS}
    end = launcher.Child.end

    def interrupted_end(child: launcher.Child) -> None:
        signal.raise_signal(signal.SIGINT)
        end(child)

    monkeypatch.setattr(launcher.Child, "end", interrupted_end)
    try:
        signals.install()
        with pytest.raises(JobFailed):
            start(fail, ("wait for a peer",), ("raise",), ("wait for a peer",))
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert multiprocessing.active_children() == []
