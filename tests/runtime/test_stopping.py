"""Stop signals while children run, start and end."""

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.errors import JobFailed
from scaling_fl.runtime import fork_server, launcher, signals
from tests.runtime.test_launcher import fail, start
from tests.tracking.builders import plan

Send = Callable[[dict[str, Any]], None]


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The signals of a test don't count in other tests, and don't wake their launchers."""
    monkeypatch.setattr(signals, "_received", [])
    yield
    signals.stop_requested()  # clears `wakeup`


def _send_for_ever(send: Send) -> None:
    while True:
        send({"event": "step"})
        time.sleep(0.01)


def test_an_interrupt_during_a_finaliser_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        ("out", 0, "stopping: saving the last complete round first, if there is one"),
        (None, 0, "stopping: nothing is saved, because of checkpoints_dir=None"),
        (None, 1, "stopping: asking node 0 to stop the job"),  # node 0 alone has checkpoints_dir
    ],
)
def test_the_note_at_a_stop_signal_says_what_is_saved(
    checkpoints_dir: str | None, node: int, note: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(launcher, "run_children", lambda *args, stop_note, **_: notes.append(stop_note))
    launcher.train(plan(checkpoints_dir, node=node, nodes=(0, 1)), pytest.fail)
    assert notes == [note]


def test_a_signal_while_the_fork_server_starts_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
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
            fork_server.start()
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert done == ["started"], "the signal is handled afterwards"
    assert os.environ.get("PYTHONPATH") == path, "the environment is restored after any exception"


def test_a_signal_while_children_are_being_ended_leaves_no_child_running(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stop: signal.getsignal(stop) for stop in signals.STOP_SIGNALS}
    kill = launcher.Child.kill

    def interrupted_kill(child: launcher.Child) -> None:
        signal.raise_signal(signal.SIGINT)
        kill(child)

    monkeypatch.setattr(launcher.Child, "kill", interrupted_kill)
    try:
        signals.install()
        with pytest.raises(JobFailed):
            start(fail, ("wait for a peer",), ("raise",), ("wait for a peer",))
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
    assert multiprocessing.active_children() == []
