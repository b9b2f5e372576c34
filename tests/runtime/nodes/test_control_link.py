"""Failures, lost nodes and stop requests reach the other nodes over their control links."""

import signal
import socket
import threading
import time
from typing import Any

import pytest

from scaling_fl.errors import JobFailed, NodeLost, OutOfMemory, UserError
from scaling_fl.runtime import signals
from scaling_fl.runtime.nodes import control_link as link_module
from scaling_fl.runtime.nodes import peer as peer_module
from scaling_fl.runtime.nodes.control_link import ControlLink
from scaling_fl.runtime.nodes.peer import Peer
from tests.runtime.nodes.links import run_nodes


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize(("kind", "expected"), [(JobFailed, JobFailed), (UserError, UserError)])
def test_a_failure_reaches_all_nodes_once_and_names_its_node(
    failing: int, kind: type[Exception], expected: type[Exception]
) -> None:
    def act(link: ControlLink) -> Any:
        try:
            if link.node.rank == failing:
                raise kind("a bug")
            link.all_gather(1)
        except Exception as error:
            link.announce_end(error)
            time.sleep(0.3)  # until the others have received it
            return error
        return None

    for rank, future in enumerate(run_nodes(3, act)):
        error = future.result(240)
        assert type(error) is expected
        assert str(error).count("on node") == (rank != failing)
        assert rank == failing or str(error).startswith(f"on node {failing} (")


def test_a_silent_or_disconnected_node_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = threading.Event()

    def silent(link: ControlLink) -> Any:
        if link.node.rank == 1:
            link._closed.set()  # no more heartbeats
            lost.wait(120)
            return None
        with pytest.raises(NodeLost, match=r"node 1 \(127\.0\.0\.1\) is lost: no heartbeat for 0 s"):
            link.all_gather(1)
        lost.set()
        return None

    def closing(link: ControlLink) -> Any:
        if link.node.rank == 1:
            return None
        with pytest.raises(NodeLost, match=r"node 1 \(127\.0\.0\.1\) is lost: its launcher closed the connection"):
            link.all_gather(1)
        return None

    for act, limit in ((silent, 0.5), (closing, 120.0)):
        monkeypatch.setattr(peer_module, "HEARTBEAT_TIMEOUT", limit)
        for future in run_nodes(2, act):
            future.result(240)


def test_heartbeats_keep_a_slow_node_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_module, "HEARTBEAT_TIMEOUT", 4.0)
    monkeypatch.setattr(link_module, "_HEARTBEAT_INTERVAL", 0.1)

    def act(link: ControlLink) -> Any:
        if link.node.rank == 1:
            time.sleep(6)
        return link.all_gather(link.node.rank)

    for future in run_nodes(2, act):
        assert future.result(240) == [0, 1]


def test_a_node_that_has_finished_its_phase_may_disconnect() -> None:
    def act(link: ControlLink) -> Any:
        link.begin_phase()
        link.finish_phase()
        if link.node.rank == 1:
            return None  # which closes the connection
        time.sleep(0.5)
        (peer,) = link.peers
        peer.receive(pytest.fail)
        link.begin_phase()
        peer.receive(pytest.fail)
        return peer.done, str(peer.failure)

    done, failure = run_nodes(2, act)[0].result(240)
    assert done == 1
    assert failure == "node 1 (127.0.0.1) is lost: its launcher closed the connection", "once another phase has begun"


def test_a_stop_request_reaches_all_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(signals, "_remote", [])
    events: list[dict[str, Any]] = []
    connected = threading.Event()  # before, node 1 doesn't pass events on

    def act(link: ControlLink) -> Any:
        if link.node.rank == 0:
            assert connected.wait(120)
            link.announce_end(KeyboardInterrupt())
            time.sleep(0.5)
        else:
            connected.set()
            deadline = time.monotonic() + 120
            while not events and time.monotonic() < deadline:
                link.peers[0].receive(events.append)
        return None

    for future in run_nodes(2, act):
        future.result(240)
    assert events == [{"event": "stopped"}]
    assert signals.stop_requested(), "so the exit status is the signal's"


@pytest.mark.parametrize(
    "error",
    [UserError("job_name=news: another run"), OutOfMemory("cuda:0: out of memory"), JobFailed("a bug")],
    ids=str,
)
def test_a_failure_reaches_nodes_that_have_begun_the_first_phase(error: Exception) -> None:
    def act(link: ControlLink) -> Any:
        if link.node.rank == 0:
            link.announce_end(error)
            time.sleep(0.3)
            return None
        link.begin_phase()
        (peer,) = link.peers
        while peer.failure is None:
            peer.receive(pytest.fail)
        return peer.failure

    failure = run_nodes(2, act)[1].result(240)
    assert type(failure) is type(error), "so that a node knows whether a restart helps"
    assert str(error) in str(failure)


def test_a_failure_before_a_restart_is_forgotten() -> None:
    def act(link: ControlLink) -> Any:
        if link.node.rank == 0:
            link.announce_end(JobFailed("a bug"))
            link.restart()
            time.sleep(0.5)
            return None
        time.sleep(0.2)
        (peer,) = link.peers
        link.restart()
        peer.receive(pytest.fail)
        return peer.failure

    assert run_nodes(2, act)[1].result(240) is None


def test_a_failure_after_a_restart_ends_that_attempt() -> None:
    """Both nodes count the restarts, so that a failure of the attempt before isn't taken for one of this."""
    restarted, heard = threading.Event(), threading.Event()

    def act(link: ControlLink) -> Any:
        (peer,) = link.peers
        if link.node.rank == 0:
            link.announce_end(JobFailed("the first bug"))
            link.restart()
            assert restarted.wait(120)
            link.announce_end(JobFailed("the second bug"))
            heard.wait(10)
            return None
        failures = []
        for _ in range(2):
            deadline = time.monotonic() + 10
            while peer.failure is None and time.monotonic() < deadline:
                peer.receive(pytest.fail)
            failures.append(peer.failure)
            link.restart()
            restarted.set()
        heard.set()
        return failures

    first, second = run_nodes(2, act)[1].result(240)
    assert str(first).endswith("the first bug")
    assert str(second).endswith("the second bug")


def test_a_value_for_the_next_attempt_is_kept_though_it_arrives_with_the_failure() -> None:
    """Node 1 restarts while node 0 is busy. Without the value, both would wait for each other for ever."""

    def act(link: ControlLink) -> Any:
        (peer,) = link.peers
        if link.node.rank == 1:
            link.announce_end(JobFailed("a bug"))
            link.restart()
            peer.send("value", "plan")
            return None
        while not peer.values:
            peer.receive(pytest.fail)
        assert isinstance(peer.failure, JobFailed)
        link.restart()
        return peer.values, peer.failure

    assert run_nodes(2, act)[0].result(240) == (["plan"], None)


def test_a_signal_on_all_nodes_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for order in (("here", "elsewhere"), ("elsewhere", "here")):
        monkeypatch.setattr(signals, "_received", [])
        monkeypatch.setattr(signals, "_remote", [])
        with signals.graceful_stop():
            for where in order:
                (signals._received.append if where == "here" else signals.receive_remote)(15)
                signals.check()  # raises if the signal counts twice
            assert signals.stop_requested()
            assert signals.exit_status() == 143
            signals._received.append(15)
            with pytest.raises(KeyboardInterrupt):
                signals.check()


@pytest.mark.parametrize(("sent", "lost"), [(b'["alive", true]\n' * 500, False), (b"x" * 200_000, True)])
def test_a_message_without_an_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, sent: bytes, lost: bool) -> None:
    """Else whoever reaches the port could fill the memory."""
    monkeypatch.setattr(peer_module, "_MAX_MESSAGE_BYTES", 100_000)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = Peer(ours, "node 1 (10.0.0.7)")
        sender = threading.Thread(target=theirs.sendall, args=(sent,))
        sender.start()
        deadline = time.monotonic() + 60
        while sender.is_alive() and peer.failure is None and time.monotonic() < deadline:
            peer.receive(pytest.fail)
        peer.receive(pytest.fail)
        assert isinstance(peer.failure, NodeLost) == lost
        assert peer.blocked != lost
        theirs.shutdown(socket.SHUT_RDWR)
        sender.join()


def test_a_node_asks_node_0_to_stop_the_job_and_gives_it_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_received", [])
    monkeypatch.setattr(signals, "_remote", [])
    heard = threading.Event()

    def act(link: ControlLink) -> Any:
        if link.node.rank == 1:
            signals._received.append(signal.SIGTERM)
            asked = link.request_stop()
            heard.wait(60)
            return asked, link.grace
        deadline = time.monotonic() + 60
        while not signals._remote and time.monotonic() < deadline:
            link.peers[0].receive(pytest.fail)
        heard.set()
        return link.request_stop(), link.grace

    assert [node.result(240) for node in run_nodes(2, act)] == [(False, 0.0), (True, 5.0)]
    assert signals._remote == [signal.SIGTERM], "so that the exit status is the same everywhere"
