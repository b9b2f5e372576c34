"""Children that make no progress."""

import dataclasses
import multiprocessing
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from scaling_fl.errors import JobFailed
from scaling_fl.progress import waiting
from scaling_fl.runtime import launcher
from scaling_fl.runtime.nodes import control_link
from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.control_link import ControlLink
from tests.conftest import free_port
from tests.tracking.builders import plan

Send = Callable[[dict[str, Any]], None]


def get_stuck(send: Any, how: str) -> None:
    send({"event": "hello"})
    if how == "asleep":
        time.sleep(1000)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    for _ in range(40 if how == "waiting later" else 0):
        send.progress()
        time.sleep(0.05)
    send.waiting = how != "busy"
    while True:
        if how == "busy":
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
                                        r"File .*test_stalls\.py., line \d+ in get_stuck"),
        (("busy", "stopped", "waiting"), r"child 1 made no progress for 5 s .*It is suspended, so it can't print its stack trace"),
        (("waiting", "waiting"), r"child [01] made no progress for 5 s"),
        (("waiting later", "waiting"), r"child 1 made no progress for 5 s"),  # the first to wait
    ],
)  # fmt: skip
def test_a_child_without_progress_ends_the_job_with_its_stack_trace(children: tuple[str, ...], message: str) -> None:
    names = [f"child {number}" for number in range(len(children))]
    with pytest.raises(JobFailed, match=message):
        launcher.run_children(
            f"{__name__}:get_stuck", [(how,) for how in children], names, "/none", lambda event: None, 5.0
        )
    assert multiprocessing.active_children() == []


def test_nodes_whose_processes_all_wait_for_each_other_are_deadlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node tells the others when its own all wait. Here node 0 has none, and says so once node 1 has."""
    monkeypatch.setattr(control_link, "_HEARTBEAT_INTERVAL", 0.1)
    ended, port = threading.Event(), free_port()

    def node_0() -> bool:
        link = ControlLink(Node(0, 2, "127.0.0.1", port), print)
        (peer,) = link.peers
        link.begin_phase()
        deadline = time.monotonic() + 60
        while not peer.blocked and time.monotonic() < deadline:
            peer.receive(pytest.fail)
            time.sleep(0.01)
        link.blocked = peer.blocked
        if not link.blocked:
            link.announce_end(JobFailed("node 1 says nothing"))
        ended.wait(240)
        link.close()
        return link.blocked

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(node_0)
        link = ControlLink(Node(1, 2, "127.0.0.1", port), print)
        try:
            with pytest.raises(JobFailed, match=r"^child 0 made no progress for 2 s"):
                launcher.run_children(
                    f"{__name__}:get_stuck", [("waiting",)], ["child 0"], "/none", lambda event: None, 2.0, link
                )
        finally:
            ended.set()
            link.close()
        assert other.result(240), "node 1 has said that its process waits"


def test_the_message_about_a_hang_ends_with_what_to_try() -> None:
    with pytest.raises(JobFailed, match=r"child 0 made no progress for 1 s(.|\n)*\ntry this$"):
        launcher.run_children(
            f"{__name__}:get_stuck", [("asleep",)], ["child 0"], "/none", lambda event: None, 1.0, hang_note="try this"
        )


@pytest.mark.parametrize(
    ("devices", "nodes", "expected"),
    [
        (("cuda:0", "cuda:1"), (), True),
        (("cuda:0", "cuda:0"), (), False),
        (("cuda:0", "cuda:0"), (0, 1), True),
        (("cpu", "cpu"), (0, 1), False),
    ],
)
def test_what_to_try_if_gpus_cannot_reach_each_other(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], nodes: tuple[int, ...], expected: bool
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(launcher, "run_children", lambda *args, hang_note, **_: notes.append(hang_note))
    launcher.train(dataclasses.replace(plan("out", nodes=nodes), devices=devices), pytest.fail)
    for setting in ("NCCL_DEBUG=WARN", "NCCL_P2P_DISABLE=1"):
        assert [setting in note for note in notes] == [expected]


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


def print_now_and_then(send: Any) -> None:
    for _ in range(12):
        print("compiling", flush=True)
        time.sleep(0.5)


def test_output_is_progress() -> None:
    launcher.run_children(f"{__name__}:print_now_and_then", [()], ["a"], "/none", lambda event: None, stall_timeout=4.0)


def wait_for_something_external(send: Any) -> None:
    with waiting(send):
        time.sleep(5)
    time.sleep(0.5)


def test_the_stall_timeout_restarts_after_an_external_wait() -> None:
    launcher.run_children(
        f"{__name__}:wait_for_something_external", [()], ["a"], "/none", lambda event: None, stall_timeout=4.0
    )


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
