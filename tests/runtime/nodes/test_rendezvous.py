"""Nodes find each other; strangers, nodes of another job and missing nodes are named."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scaling_fl.errors import UserError
from scaling_fl.runtime.nodes import control_link as link_module
from scaling_fl.runtime.nodes.cluster_env import Node
from scaling_fl.runtime.nodes.control_link import ControlLink
from scaling_fl.runtime.nodes.peer import Peer
from tests.conftest import free_port
from tests.runtime.nodes.links import run_nodes


def test_nodes_meet_and_exchange_values_by_rank() -> None:
    def act(link: ControlLink) -> Any:
        first = link.all_gather({"rank": link.node.rank})
        return first, link.all_gather(link.node.rank * 10), link.interface(), link.addresses

    for future in run_nodes(3, act, ranks=[2, 0, 1]):
        first, second, interface, addresses = future.result(240)
        assert first == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
        assert second == [0, 10, 20]
        assert interface == "lo"
        assert set(addresses) == {"127.0.0.1"}


def test_a_single_node_makes_no_connections() -> None:
    link = ControlLink(Node(), pytest.fail)
    assert link.all_gather(7) == [7]
    assert link.peers == []
    assert not link.request_stop()
    link.close()


def test_strangers_and_nodes_of_another_job_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    port, messages = free_port(), list[str]()
    result: list[Any] = []

    def node0() -> None:
        link = ControlLink(Node(0, 2, "127.0.0.1", port), messages.append)
        result.append(link.all_gather("zero"))
        link.close()

    thread = threading.Thread(target=node0)
    thread.start()
    for text in (b"GET / HTTP/1.1\r\n\r\n", b"", json.dumps(["scaling_fl", 1]).encode() + b"\n"):
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        stranger.sendall(text)
        stranger.close()
    for node, refusal in ((Node(1, 3), "WORLD_SIZE=3 there, but 2 on node 0"), (Node(0, 2), None)):
        if refusal is not None:
            with pytest.raises(UserError, match=refusal):
                ControlLink(Node(node.rank, node.count, "127.0.0.1", port), messages.append)
    link = ControlLink(Node(1, 2, "127.0.0.1", port), messages.append)
    assert link.all_gather("one") == ["zero", "one"]
    thread.join(240)
    link.close()
    assert result == [["zero", "one"]]
    assert any(line.startswith("note: refused a node at 127.0.0.1: WORLD_SIZE=3 there") for line in messages)


@pytest.mark.parametrize(
    ("claim", "rank", "refusal"),
    [
        (["scaling_fl", 1, 3], 1, ""),
        (["scaling_fl", 2, 3], 2, ""),
        (["scaling_fl", 0, 3], 0, "RANK=0: expected 1 to 2, because node 0 is listening; give each node its own rank"),
        (["scaling_fl", 3, 3], 3, "RANK=3: expected 1 to 2, because node 0 is listening; give each node its own rank"),
        (
            ["scaling_fl", -1, 3],
            -1,
            "RANK=-1: expected 1 to 2, because node 0 is listening; give each node its own rank",
        ),
        (["scaling_fl", 1, 2], 1, "WORLD_SIZE=2 there, but 3 on node 0; use the same value on every node"),
        (["scaling_fl", True, 3], None, ""),  # the others aren't launchers
        (["scaling_fl", "1", 3], None, ""),
        (["scaling_flow", 1, 3], None, ""),
        ({"scaling_fl": 1}, None, ""),
        (7, None, ""),
    ],
)
def test_node_0_admits_each_other_rank_of_its_own_job(claim: Any, rank: int | None, refusal: str) -> None:
    link = ControlLink(Node(), pytest.fail)
    link.node = Node(0, 3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(json.dumps(claim).encode() + b"\n")
        assert link._check_handshake(ours, {}) == (rank, refusal)


def test_a_rank_is_taken_until_its_node_is_gone() -> None:
    link = ControlLink(Node(), pytest.fail)
    link.node = Node(0, 3)
    first, first_there = socket.socketpair()
    second, second_there = socket.socketpair()
    with first, second, second_there:
        found = {1: (Peer(first, "node 1 (10.0.0.7)"), "10.0.0.7")}
        for refusal in ("RANK=1: already taken by the node at 10.0.0.7; give each node its own rank", ""):
            second_there.sendall(json.dumps(["scaling_fl", 1, 3]).encode() + b"\n")
            assert link._check_handshake(second, found) == (1, refusal)
            first_there.close()


def test_missing_nodes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_RENDEZVOUS_TIMEOUT", 1.0)
    port = free_port()
    with pytest.raises(
        UserError, match="nodes 1, 2 of 3 didn't connect within 0 minutes; check that the command is running there"
    ):
        ControlLink(Node(0, 3, "127.0.0.1", port), lambda text: None)
    with pytest.raises(UserError, match=rf"node 0 at 127\.0\.0\.1:{port} doesn't answer"):
        ControlLink(Node(1, 3, "127.0.0.1", port), lambda text: None)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UserError, match=f"MASTER_PORT={port}: node 0 can't listen on this port"),
    ):
        ControlLink(Node(0, 3, "127.0.0.1", port), lambda text: None)


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_node_that_reconnects_replaces_its_dead_predecessor(
    order: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_RENDEZVOUS_TIMEOUT", 120.0)
    port, messages = free_port(), list[str]()
    with ThreadPoolExecutor(3) as pool, contextlib.ExitStack() as links:
        nodes = [pool.submit(lambda: ControlLink(Node(0, 3, "127.0.0.1", port), messages.append))]
        while True:
            try:
                dead = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        dead.sendall(json.dumps(["scaling_fl", 1, 3]).encode() + b"\n")
        time.sleep(0.3)  # until node 0 has admitted it
        dead.close()
        for rank in order:
            nodes.append(pool.submit(lambda rank=rank: ControlLink(Node(rank, 3, "127.0.0.1", port), messages.append)))
            time.sleep(0.5)
        for node in nodes:
            links.callback(node.result(240).close)
        results = [pool.submit(node.result().all_gather, node.result().node.rank) for node in nodes]
        assert [result.result(240) for result in results] == [[0, 1, 2]] * 3


def test_a_node_that_is_there_is_told_which_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    port, waits = free_port(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        node_1 = pool.submit(ControlLink, Node(1, 3, "127.0.0.1", port), lambda text: waits.set())
        assert waits.wait(120)
        monkeypatch.setattr(link_module, "_RENDEZVOUS_TIMEOUT", 3.0)  # of node 0 alone
        with pytest.raises(UserError, match=r"^node 2 of 3 didn't connect within"):
            ControlLink(Node(0, 3, "127.0.0.1", port), lambda text: None)
        with pytest.raises(UserError, match=r"^node 2 of 3 didn't connect; check that the command is running there$"):
            node_1.result(240)


def test_a_node_that_has_waited_for_the_last_one_does_not_count_as_silent() -> None:
    """Until all are there, node 0 reads nothing, and nobody sends heartbeats."""
    port, link = free_port(), list[ControlLink]()
    node_0 = threading.Thread(target=lambda: link.append(ControlLink(Node(0, 3, "127.0.0.1", port), print)))
    node_0.start()
    with contextlib.ExitStack() as others:
        for rank in (1, 2):
            began = time.monotonic()
            while True:
                try:
                    other = others.enter_context(socket.create_connection(("127.0.0.1", port)))
                    break
                except ConnectionRefusedError:
                    time.sleep(0.05)
            other.sendall(json.dumps(["scaling_fl", rank, 3]).encode() + b"\n")
            time.sleep(0.3)  # until node 0 has admitted it
        node_0.join(240)
        assert [peer.progress_at > began for peer in link[0].peers] == [True, True]
        link[0].close()
